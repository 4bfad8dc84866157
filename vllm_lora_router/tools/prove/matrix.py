"""A proof: the matrix of categories and models, with what it says, as the command shows it and as JSON."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_lora_router.tools.prove.assignments import Assigned
from vllm_lora_router.tools.prove.compare import RESAMPLES
from vllm_lora_router.tools.prove.endpoint import Endpoint, ProofError, Served
from vllm_lora_router.tools.prove.likelihoods import Measurements, measure
from vllm_lora_router.tools.prove.pairs import Pair
from vllm_lora_router.tools.prove.verdicts import Row, judge

VERSION = 1


@dataclass(frozen=True)
class Proof:
    """What the likelihoods of all answers under all models say."""

    assigned: Assigned
    served: Served
    measurements: Measurements
    rows: tuple[Row, ...]  # a category with pairs each, as they came
    seed: int

    @property
    def is_wrong(self) -> bool:
        """Whether an assignment was found to be wrong."""
        return any(row.verdict.is_wrong for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """What `--json` writes: log-likelihoods are means over an answer's tokens, then over pairs, in nats."""
        return {
            "version": VERSION,
            "matrix": {row.category: dict(row.means) for row in self.rows},
            "served_by": {row.category: row.served_by for row in self.rows},
            "base": self.assigned.base,
            "intervals": {row.category: _intervals(row) for row in self.rows},
            "pairs": {row.category: row.pairs for row in self.rows},
            "answer_tokens": {name: one.answer_tokens for name, one in self.measurements.by_category.items()},
            "asked_tokens": {name: one.asked_tokens for name, one in self.measurements.by_category.items()},
            "verdicts": [
                {"category": row.category, "served_by": row.served_by, **dataclasses.asdict(row.verdict)}
                for row in self.rows
            ],
            "url_model_list": list(self.served.listed),
            "answered_as": dict(self.measurements.answered),
            "left_out": list(self.measurements.left_out),
            "notes": list(self.measurements.notes),
            "resamples": RESAMPLES,
            "seed": self.seed,
        }


async def prove(
    endpoint: Endpoint,
    assigned: Assigned,
    served: Served,
    pairs: Sequence[Pair],
    *,
    tokens: int = 32,
    at_once: int = 16,
    seed: int = 0,
    planned: Callable[[int], None] = lambda requests: None,
    advance: Callable[[], None] = lambda: None,
) -> Proof:
    """Asks the base and every adapter how likely they find each pair's answer, and judges each category by it.

    Args:
        tokens: of an answer that are asked about at most, each by a request to every model.
        at_once: requests under way at a time.
        seed: of the bootstrap.
        planned: called with the number of requests once it is known.
        advance: called after each of them.

    Raises:
        ProofError: no pair is left to judge by.
        ServerError: the server cannot be reached, answers with an error, or with another model than was asked.
    """
    measurements = await measure(
        endpoint,
        assigned.models,
        pairs,
        assigned.system_prompts,
        tokens=tokens,
        at_once=at_once,
        planned=planned,
        advance=advance,
    )
    if not measurements.by_category:
        raise ProofError("\n".join([*measurements.left_out, "no pair is left to ask"]))
    rows = [
        judge(category, assigned.served_by[category], assigned.models, measured.values, seed=seed)
        for category, measured in measurements.by_category.items()
    ]
    return Proof(assigned, served, measurements, tuple(rows), seed)


def _intervals(row: Row) -> dict[str, Any]:
    """Of each adapter: what it gains over the base, and over what serves."""
    return {
        model: {
            name: dataclasses.asdict(compared[model]) if model in compared else None
            for name, compared in (("to_base", row.to_base), ("to_served", row.to_served))
        }
        for model in row.means
        if model in row.to_base
    }
