"""The same figure for prompts of one length, or of one script."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_lora_router.tools.evaluate.figures import Figure, share
from vllm_lora_router.tools.evaluate.outcome import Answer

LENGTHS = (25, 50, 100, 400)  # characters; the last of a band


@dataclass(frozen=True, slots=True)
class Slice:
    """Prompts that have something in common."""

    name: str
    accuracy: Figure
    guess: Figure | None  # of those in scope


def by_length(answers: Sequence[Answer]) -> list[Slice]:
    """By the number of characters, shortest first."""
    bands = [f"{low + 1} to {high} characters" for low, high in zip((0, *LENGTHS[:-1]), LENGTHS, strict=True)]
    bands.append(f"over {LENGTHS[-1]} characters")
    slices = _slices(answers, lambda one: bands[sum(len(one.text) > last for last in LENGTHS)])
    return sorted(slices, key=lambda one: bands.index(one.name))


def by_script(answers: Sequence[Answer]) -> list[Slice]:
    """By the script that most letters are of, the most frequent first."""
    return sorted(_slices(answers, lambda one: script(one.text)), key=lambda one: -one.accuracy.of)


def script(text: str) -> str:
    """The script of most letters, as Unicode's names of characters begin: latin, cyrillic, cjk, ...; else `none`."""
    letters = (letter for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())
    scripts = Counter(unicodedata.name(letter, "none").partition(" ")[0].lower() for letter in letters)
    return scripts.most_common(1)[0][0] if scripts else "none"


def _slices(answers: Sequence[Answer], name_of: Callable[[Answer], str]) -> list[Slice]:
    by_name: dict[str, list[Answer]] = {}
    for one in answers:
        by_name.setdefault(name_of(one), []).append(one)
    found = []
    for name, own in by_name.items():
        if (accuracy := share(one.right for one in own)) is not None:
            found.append(Slice(name, accuracy, share(one.guessed_right for one in own if one.in_scope)))
    return found
