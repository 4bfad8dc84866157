"""What the likelihoods say of each category's assignment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vllm_lora_router.tools.prove.compare import LEAST_PAIRS, Difference, differences

Kind = Literal["base", "other", "helps", "stays", "untold", "not asked"]
WRONG: frozenset[Kind] = frozenset({"base", "other"})


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a category's assignment.

    base: it should be the base. other: another adapter is better. helps: its adapter is better than the base. stays: it
    is the base, and no adapter looks better. untold: the pairs do not tell. not asked: its own adapter was not asked.
    """

    kind: Kind
    text: str
    model: str | None = None  # what would be better
    pairs_needed: int | None = None  # where the pairs do not tell

    @property
    def is_wrong(self) -> bool:
        return self.kind in WRONG


@dataclass(frozen=True)
class Row:
    """A category in the matrix."""

    category: str
    served_by: str
    pairs: int
    means: Mapping[str, float]  # model -> mean log-likelihood of an answer's tokens, in nats
    to_base: Mapping[str, Difference]  # adapter -> what it gains over the base
    to_served: Mapping[str, Difference]  # adapter -> what it gains over the model that serves
    verdict: Verdict


def judge(category: str, served_by: str, models: Sequence[str], values: np.ndarray, *, seed: int = 0) -> Row:
    """A category's row.

    Whether its adapter helps is one comparison, with the base, and goes by its 95 % interval. Every other adapter is
    compared with what serves, and is called better only where it is so after Holm's correction for all of them.

    Args:
        served_by: what the configuration has for the category; it need not be among `models`.
        models: the base first.
        values: [pairs, models] mean log-likelihood of each answer's tokens, in nats.
        seed: of the bootstrap.
    """
    base = models[0]

    def compared(to: str) -> dict[str, Difference]:
        of = [place for place, model in enumerate(models) if model not in (base, to)]
        found = differences(values, models.index(to), of, seed=seed)
        return {models[place]: difference for place, difference in zip(of, found, strict=True)}

    means = dict(zip(models, map(float, values.mean(axis=0)), strict=True))
    to_base = compared(base)
    to_served = to_base if served_by == base else compared(served_by) if served_by in models else {}
    verdict = _verdict(category, served_by, base, len(values), means, to_base, to_served)
    return Row(category, served_by, len(values), means, to_base, to_served, verdict)


def _verdict(
    category: str,
    served_by: str,
    base: str,
    pairs: int,
    means: Mapping[str, float],
    to_base: Mapping[str, Difference],
    to_served: Mapping[str, Difference],
) -> Verdict:
    if served_by not in means:
        return Verdict("not asked", f"`{category}`: nothing is said, for `{served_by}`, which serves it, was not asked")
    better = [model for model, gain in to_served.items() if gain.is_found_above]
    if served_by != base and to_base[served_by].is_below:
        better.append(base)
    if better:
        best = max(better, key=means.__getitem__)
        if best == base:
            loses = _interval(to_base[served_by])
            text = f"`{category}`: this entry should be the base, which `{served_by}` falls behind ({loses})"
            return Verdict("base", text, base)
        gains = _interval(to_served[best])
        return Verdict("other", f"`{category}` is served better by `{best}` than by `{served_by}` ({gains})", best)
    if served_by != base and to_base[served_by].is_above:
        return Verdict("helps", f"`{category}`: `{served_by}` helps ({_interval(to_base[served_by])})")
    return _untold(category, served_by, base, pairs, to_base)


def _untold(category: str, served_by: str, base: str, pairs: int, to_base: Mapping[str, Difference]) -> Verdict:
    """No difference that counts: to the base, or where that serves, to the adapter that looks best."""
    of = max(to_base, key=lambda model: to_base[model].value, default=None) if served_by == base else served_by
    if of is None:
        return Verdict("stays", f"`{category}`: it is the base's, and no adapter was asked")
    seen = to_base[of]
    if served_by == base and seen.value <= 0 and pairs >= LEAST_PAIRS:
        return Verdict("stays", f"`{category}`: it is the base's, and no adapter looks better")
    text = f"`{category}`: no difference between `{of}` and the base can be told with {pairs} pair{'s' * (pairs != 1)}"
    if pairs < LEAST_PAIRS:
        return Verdict("untold", f"{text}; at least {LEAST_PAIRS} are needed for any", None, LEAST_PAIRS)
    if seen.pairs_needed is None:
        return Verdict("untold", f"{text}: all of them gave the same")
    needed = f"about {seen.pairs_needed:,} would be needed for the difference seen ({seen.value:+.3f})"
    return Verdict("untold", f"{text}; {needed}", None, seen.pairs_needed)


def _interval(difference: Difference) -> str:
    return f"{difference.value:+.3f}, 95 % {difference.low:+.3f} to {difference.high:+.3f} nats a token"
