"""The matrix of categories and models, with a verdict on each category's assignment."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_lora_router.tools.prove.assignments import Assignments
from vllm_lora_router.tools.prove.compare import RESAMPLES, Gain
from vllm_lora_router.tools.prove.endpoint import Endpoint, ProveError, ServedModels
from vllm_lora_router.tools.prove.likelihoods import Scores, score_pairs
from vllm_lora_router.tools.prove.pairs import Pair
from vllm_lora_router.tools.prove.verdicts import CategoryResult, judge

VERSION = 1


@dataclass(frozen=True)
class Matrix:
    """The mean log-likelihoods of all categories under all models, and the verdicts that follow from them."""

    assignments: Assignments
    served: ServedModels
    scores: Scores
    rows: tuple[CategoryResult, ...]  # categories with pairs, in the order of the data
    seed: int

    @property
    def is_wrong(self) -> bool:
        """Whether at least one assignment is wrong."""
        return any(row.verdict.is_wrong for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the `--json` file.

        Log-likelihoods are means over an answer's tokens, then over pairs, in nats.
        """
        return {
            "version": VERSION,
            "matrix": {row.category: dict(row.means) for row in self.rows},
            "served_by": {row.category: row.served_by for row in self.rows},
            "base": self.assignments.base,
            "intervals": {row.category: _intervals(row) for row in self.rows},
            "pairs": {row.category: row.pairs for row in self.rows},
            "answer_tokens": {name: scores.answer_tokens for name, scores in self.scores.by_category.items()},
            "scored_tokens": {name: scores.scored_tokens for name, scores in self.scores.by_category.items()},
            "verdicts": [
                {"category": row.category, "served_by": row.served_by, **dataclasses.asdict(row.verdict)}
                for row in self.rows
            ],
            "served_models": list(self.served.listed),
            "answered_as": dict(self.scores.answered_as),
            "left_out": list(self.scores.left_out),
            "notes": list(self.scores.notes),
            "resamples": RESAMPLES,
            "seed": self.seed,
        }


async def build_matrix(
    endpoint: Endpoint,
    assignments: Assignments,
    served: ServedModels,
    pairs: Sequence[Pair],
    *,
    tokens: int = 32,
    concurrency: int = 16,
    seed: int = 0,
    on_planned: Callable[[int], None] = lambda requests: None,
    on_request: Callable[[], None] = lambda: None,
) -> Matrix:
    """Score each pair's answer under the base and every adapter, and judge each category's assignment.

    Args:
        tokens: Maximum number of scored tokens per answer. Each is one request per model.
        concurrency: Maximum number of concurrent requests.
        seed: Seed of the bootstrap.
        on_planned: Called with the number of requests when it is known.
        on_request: Called after each request.

    Raises:
        ProveError: No pair can be scored.
        ServerError: A request fails, or another model than the requested one answers.
    """
    scores = await score_pairs(
        endpoint,
        assignments.models,
        pairs,
        assignments.system_prompts,
        tokens=tokens,
        concurrency=concurrency,
        on_planned=on_planned,
        on_request=on_request,
    )
    if not scores.by_category:
        raise ProveError("\n".join([*scores.left_out, "no pair can be scored"]))
    rows = [
        judge(category, assignments.served_by[category], assignments.models, of_category.values, seed=seed)
        for category, of_category in scores.by_category.items()
    ]
    return Matrix(assignments, served, scores, tuple(rows), seed)


def _intervals(row: CategoryResult) -> dict[str, Any]:
    """Return each adapter's gain over the base and over the assigned model."""
    return {
        model: {
            name: _gain(gains[model]) if model in gains else None
            for name, gains in (("to_base", row.to_base), ("to_served", row.to_served))
        }
        for model in row.means
        if model in row.to_base
    }


def _gain(gain: Gain) -> dict[str, Any]:
    interval = gain.interval
    return {
        "value": gain.value,
        "low": interval and interval.low,
        "high": interval and interval.high,
        "p": gain.p,
        "p_holm": gain.p_holm,
        "pairs_needed": gain.pairs_needed,
    }
