"""Accuracy of subsets of the prompts: by length and by script."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_lora_router.tools.evaluate.outcome import Outcome
from vllm_lora_router.tools.statistics import Estimate, proportion

MAX_LENGTHS = (25, 50, 100, 400)  # characters; the upper end of each band


@dataclass(frozen=True, slots=True)
class Slice:
    """The accuracy of a subset of the prompts."""

    name: str
    accuracy: Estimate
    best_guess: Estimate | None  # in scope


def by_length(outcomes: Sequence[Outcome]) -> list[Slice]:
    """Return the accuracy by number of characters, shortest first."""
    lower_ends = (0, *MAX_LENGTHS[:-1])
    bands = [f"{low + 1} to {high} characters" for low, high in zip(lower_ends, MAX_LENGTHS, strict=True)]
    bands.append(f"over {MAX_LENGTHS[-1]} characters")
    slices = _slices(outcomes, lambda outcome: bands[sum(len(outcome.text) > high for high in MAX_LENGTHS)])
    return sorted(slices, key=lambda subset: bands.index(subset.name))


def by_script(outcomes: Sequence[Outcome]) -> list[Slice]:
    """Return the accuracy by the script of most letters, most frequent script first."""
    slices = _slices(outcomes, lambda outcome: script(outcome.text))
    return sorted(slices, key=lambda subset: -subset.accuracy.n)


def script(text: str) -> str:
    """Return the script of most letters: the first word of their Unicode names, such as latin or cjk; else `none`."""
    letters = (letter for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())
    scripts = Counter(unicodedata.name(letter, "none").partition(" ")[0].lower() for letter in letters)
    return scripts.most_common(1)[0][0] if scripts else "none"


def _slices(outcomes: Sequence[Outcome], name_of: Callable[[Outcome], str]) -> list[Slice]:
    by_name: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(name_of(outcome), []).append(outcome)
    slices = []
    for name, subset in by_name.items():
        if (accuracy := proportion(outcome.correct for outcome in subset)) is not None:
            best_guess = proportion(outcome.guess_correct for outcome in subset if outcome.in_scope)
            slices.append(Slice(name, accuracy, best_guess))
    return slices
