"""Robustness: the share of prompts that are routed the same after a small change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.outcome import Outcome, outcome_of
from vllm_lora_router.tools.evaluate.perturbations import PERTURBATIONS, perturb
from vllm_lora_router.tools.evaluate.targets import Target, plan_all
from vllm_lora_router.tools.statistics import Estimate, bootstrap, proportion


@dataclass(frozen=True, slots=True)
class PerturbedOutcome:
    """A prompt's outcome before and after a perturbation."""

    before: Outcome
    kind: str
    after: Outcome


@dataclass(frozen=True, slots=True)
class Stability:
    """Shares of prompts that stay the same under one kind of perturbation."""

    kind: str
    guess: Estimate  # the best category
    chosen: Estimate  # the plan's category


@dataclass(frozen=True, slots=True)
class Robustness:
    """Stability under all perturbations together, where each prompt counts once, and under each kind."""

    guess: Estimate
    chosen: Estimate
    kinds: list[Stability]
    in_scope: Stability | None  # of in-scope prompts; None if all or none are in scope


def sample(outcomes: Sequence[Outcome], count: int, seed: int = 0) -> list[Outcome]:
    """Return at most `count` outcomes, sampled by the seed, in their order."""
    places = Random(seed).sample(range(len(outcomes)), min(count, len(outcomes)))
    return [outcomes[place] for place in sorted(places)]


def perturbed_texts(outcomes: Sequence[Outcome], seed: int = 0) -> list[tuple[Outcome, str, str]]:
    """Return each outcome with each kind of perturbation and the perturbed text, without unchanged texts."""
    return [
        (outcome, kind, text)
        for outcome in outcomes
        for kind in PERTURBATIONS
        if (text := perturb(outcome.text, kind, seed)) is not None
    ]


async def plan_perturbed(
    target: Target, outcomes: Sequence[Outcome], seed: int = 0, on_plan: Callable[[], None] = lambda: None
) -> list[PerturbedOutcome]:
    """Plan the perturbed texts of outcomes.

    Raises:
        TargetError: The target does not respond.
    """
    perturbed = perturbed_texts(outcomes, seed)
    plans = await plan_all(target, [text for _, _, text in perturbed], on_plan)
    return [
        PerturbedOutcome(before, kind, outcome_of(Example(text, before.label, location=before.location), plan))
        for (before, kind, text), plan in zip(perturbed, plans, strict=True)
    ]


def robustness(perturbed: Sequence[PerturbedOutcome], seed: int = 0) -> Robustness | None:
    """Return how often outcomes stay the same; None without perturbed outcomes."""
    if not perturbed:
        return None
    kinds = []
    for kind in dict.fromkeys(outcome.kind for outcome in perturbed):
        of_kind = [outcome for outcome in perturbed if outcome.kind == kind]
        guess, chosen = proportion(map(_same_guess, of_kind)), proportion(map(_same_choice, of_kind))
        assert guess is not None and chosen is not None
        kinds.append(Stability(kind, guess, chosen))
    inside = [outcome for outcome in perturbed if outcome.before.label is not None]
    in_scope = _stability("in scope", inside, seed) if 0 < len(inside) < len(perturbed) else None
    overall = _stability("all", perturbed, seed)
    return Robustness(overall.guess, overall.chosen, kinds, in_scope)


def _stability(kind: str, perturbed: Sequence[PerturbedOutcome], seed: int) -> Stability:
    return Stability(kind, _share(perturbed, _same_guess, seed), _share(perturbed, _same_choice, seed))


def _share(perturbed: Sequence[PerturbedOutcome], is_same: Callable[[PerturbedOutcome], bool], seed: int) -> Estimate:
    # Perturbations of one prompt are correlated, so prompts are resampled, not perturbations.
    by_prompt: dict[str, list[bool]] = {}
    for outcome in perturbed:
        by_prompt.setdefault(outcome.before.text, []).append(is_same(outcome))
    hits = np.array([sum(of_prompt) for of_prompt in by_prompt.values()])
    sizes = np.array([len(of_prompt) for of_prompt in by_prompt.values()])

    def weighted_share(counts: np.ndarray) -> float:
        return float((counts * hits).sum() / (counts * sizes).sum())

    return bootstrap(float(hits.sum() / sizes.sum()), len(hits), weighted_share, seed)


def _same_guess(outcome: PerturbedOutcome) -> bool:
    return outcome.before.guess == outcome.after.guess


def _same_choice(outcome: PerturbedOutcome) -> bool:
    return outcome.before.chosen == outcome.after.chosen and outcome.before.accepted == outcome.after.accepted
