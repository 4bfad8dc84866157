"""Verdicts on the assignment of each category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vllm_lora_router.tools.prove.compare import MIN_PAIRS, Gain, compare_models

Kind = Literal["use_base", "use_other", "helps", "keep_base", "inconclusive", "not_scored"]
WRONG: frozenset[Kind] = frozenset({"use_base", "use_other"})


@dataclass(frozen=True)
class Verdict:
    """A verdict on a category's assignment.

    Kinds: `use_base`: the base is better than the assigned adapter. `use_other`: another adapter is better. `helps`:
    the assigned adapter is better than the base. `keep_base`: the base is assigned, and no adapter looks better.
    `inconclusive`: the pairs show no difference. `not_scored`: the assigned adapter was not scored.
    """

    kind: Kind
    text: str
    model: str | None = None  # the better model
    pairs_needed: int | None = None  # set if the pairs show no difference

    @property
    def is_wrong(self) -> bool:
        """Whether the assignment should change."""
        return self.kind in WRONG


@dataclass(frozen=True)
class CategoryResult:
    """The row of a category in the matrix."""

    category: str
    served_by: str
    pairs: int
    means: Mapping[str, float]  # model -> mean log-likelihood of an answer's tokens, in nats
    to_base: Mapping[str, Gain]  # adapter -> its gain over the base
    to_served: Mapping[str, Gain]  # adapter -> its gain over the assigned model
    verdict: Verdict


def judge(category: str, served_by: str, models: Sequence[str], values: np.ndarray, *, seed: int = 0) -> CategoryResult:
    """Compare the models of a category and judge its assignment.

    The assigned adapter is compared with the base, by the 95 % interval of this one comparison. All other adapters are
    compared with the assigned model, and are called better only if they are better after Holm's correction.

    Args:
        served_by: The assigned model; it need not be among `models`.
        models: The scored models, the base first.
        values: Mean log-likelihood of each answer's tokens in nats, [pairs, models].
        seed: Seed of the bootstrap.
    """
    base = models[0]

    def gains_over(reference: str) -> dict[str, Gain]:
        columns = [column for column, model in enumerate(models) if model not in (base, reference)]
        gains = compare_models(values, models.index(reference), columns, seed=seed)
        return {models[column]: gain for column, gain in zip(columns, gains, strict=True)}

    means = dict(zip(models, map(float, values.mean(axis=0)), strict=True))
    to_base = gains_over(base)
    to_served = to_base if served_by == base else gains_over(served_by) if served_by in models else {}
    verdict = _verdict(category, served_by, base, len(values), means, to_base, to_served)
    return CategoryResult(category, served_by, len(values), means, to_base, to_served, verdict)


def _verdict(
    category: str,
    served_by: str,
    base: str,
    pairs: int,
    means: Mapping[str, float],
    to_base: Mapping[str, Gain],
    to_served: Mapping[str, Gain],
) -> Verdict:
    if served_by not in means:
        return Verdict("not_scored", f"`{category}`: no verdict; its adapter `{served_by}` was not scored")
    better = [model for model, gain in to_served.items() if gain.is_significant]
    if served_by != base and to_base[served_by].is_below:
        better.append(base)
    if better:
        best = max(better, key=means.__getitem__)
        if best == base:
            text = f"`{category}`: use the base instead of `{served_by}`, which is worse"
            return Verdict("use_base", f"{text} ({_interval(to_base[served_by])})", base)
        text = f"`{category}`: use `{best}`, which is better than `{served_by}`"
        return Verdict("use_other", f"{text} ({_interval(to_served[best])})", best)
    if served_by != base and to_base[served_by].is_above:
        return Verdict("helps", f"`{category}`: `{served_by}` helps ({_interval(to_base[served_by])})")
    return _no_difference(category, served_by, base, pairs, to_base)


def _no_difference(category: str, served_by: str, base: str, pairs: int, to_base: Mapping[str, Gain]) -> Verdict:
    """Judge a category without a significant difference.

    The verdict compares the assigned adapter with the base; if the base is assigned, the adapter that looks best.
    """
    best = max(to_base, key=lambda model: to_base[model].value, default=None)
    adapter = best if served_by == base else served_by
    if adapter is None:
        return Verdict("keep_base", f"`{category}`: keep the base; no adapter was scored")
    gain = to_base[adapter]
    if served_by == base and gain.value <= 0 and pairs >= MIN_PAIRS:
        return Verdict("keep_base", f"`{category}`: keep the base; no adapter looks better")
    text = f"`{category}`: {pairs} pair{'s' * (pairs != 1)} show no difference between `{adapter}` and the base"
    if pairs < MIN_PAIRS:
        return Verdict("inconclusive", f"{text}; at least {MIN_PAIRS} pairs are needed", None, MIN_PAIRS)
    if gain.pairs_needed is None:
        return Verdict("inconclusive", f"{text}: all log-likelihoods are equal")
    needed = f"about {gain.pairs_needed:,} pairs are needed to detect the observed difference ({gain.value:+.3f})"
    return Verdict("inconclusive", f"{text}; {needed}", None, gain.pairs_needed)


def _interval(gain: Gain) -> str:
    assert gain.interval is not None
    return f"{gain.value:+.3f}, 95 % {gain.interval.low:+.3f} to {gain.interval.high:+.3f} nats per token"
