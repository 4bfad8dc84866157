"""Whether a prompt is routed alike after a small change that leaves its meaning as it was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.figures import Figure, bootstrapped, share
from vllm_lora_router.tools.evaluate.outcome import Answer, answer
from vllm_lora_router.tools.evaluate.perturbations import CHANGES, changed
from vllm_lora_router.tools.evaluate.targets import Subject, plans


@dataclass(frozen=True, slots=True)
class Changed:
    """A prompt, and what became of it after a change."""

    before: Answer
    kind: str
    after: Answer


@dataclass(frozen=True, slots=True)
class Agreed:
    """The shares that stay the same under one kind of change."""

    kind: str
    guess: Figure  # the best category
    chosen: Figure  # the one that the plan takes


@dataclass(frozen=True, slots=True)
class Agreement:
    """Under all kinds together, where each prompt counts once, and under each."""

    guess: Figure
    chosen: Figure
    kinds: list[Agreed]
    in_scope: Agreed | None  # of what has a category alone; None where all has one, or nothing


def sample(answers: Sequence[Answer], count: int, seed: int = 0) -> list[Answer]:
    """So many of the answers, or all, drawn by the seed, in their own order."""
    places = Random(seed).sample(range(len(answers)), min(count, len(answers)))
    return [answers[place] for place in sorted(places)]


def variants(answers: Sequence[Answer], seed: int = 0) -> list[tuple[Answer, str, str]]:
    """Each answer with each kind of change and the changed text; a change that changes nothing is left out."""
    return [
        (one, kind, text) for one in answers for kind in CHANGES if (text := changed(one.text, kind, seed)) is not None
    ]


async def ask_again(
    subject: Subject, answers: Sequence[Answer], seed: int = 0, told: Callable[[], None] = lambda: None
) -> list[Changed]:
    """Asks the changed texts of answers.

    Raises:
        SubjectError: the subject does not answer.
    """
    asked = variants(answers, seed)
    found = await plans(subject, [text for _, _, text in asked], told)
    return [
        Changed(one, kind, answer(Example(text, one.label, place=one.place), plan))
        for (one, kind, text), plan in zip(asked, found, strict=True)
    ]


def agreement(found: Sequence[Changed], seed: int = 0) -> Agreement | None:
    """How often it stays the same; None where nothing was changed."""
    if not found:
        return None
    kinds = []
    for kind in dict.fromkeys(one.kind for one in found):
        own = [one for one in found if one.kind == kind]
        guess, chosen = share(map(_same_guess, own)), share(map(_same_choice, own))
        assert guess is not None and chosen is not None
        kinds.append(Agreed(kind, guess, chosen))
    inside = [one for one in found if one.before.label is not None]
    in_scope = _overall("in scope", inside, seed) if 0 < len(inside) < len(found) else None
    overall = _overall("all", found, seed)
    return Agreement(overall.guess, overall.chosen, kinds, in_scope)


def _overall(kind: str, found: Sequence[Changed], seed: int) -> Agreed:
    return Agreed(kind, _over_all(found, _same_guess, seed), _over_all(found, _same_choice, seed))


def _over_all(found: Sequence[Changed], same: Callable[[Changed], bool], seed: int) -> Figure:
    # The changes of one prompt stand or fall together, so prompts are resampled, not changes.
    by_prompt: dict[str, list[bool]] = {}
    for one in found:
        by_prompt.setdefault(one.before.text, []).append(same(one))
    hits = np.array([sum(own) for own in by_prompt.values()])
    sizes = np.array([len(own) for own in by_prompt.values()])

    def measure(counts: np.ndarray) -> float:
        return float((counts * hits).sum() / (counts * sizes).sum())

    return bootstrapped(float(hits.sum() / sizes.sum()), len(hits), measure, seed)


def _same_guess(one: Changed) -> bool:
    return one.before.guess == one.after.guess


def _same_choice(one: Changed) -> bool:
    return one.before.chosen == one.after.chosen and one.before.sure == one.after.sure
