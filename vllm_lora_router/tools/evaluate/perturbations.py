"""Small changes to a prompt that keep its meaning."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from random import Random

Perturbation = Callable[[str, Random], str]

TYPO_EVERY = 30  # characters
_POLITE = ("please {}", "could you tell me {}", "{} thanks!")
_PREFIXES = ("hi, {}", "quick question: {}")
_WITHIN_WORDS = "'’-"  # removed without a space, so that the word stays one word


def lower(text: str, random: Random) -> str:
    """Return the text in lower case."""
    return text.lower()


def upper(text: str, random: Random) -> str:
    """Return the text in upper case."""
    return text.upper()


def typos(text: str, random: Random) -> str:
    """Insert about one typo per 30 characters, at least one: two letters swapped, one letter omitted or doubled."""
    places = [place for place in range(len(text) - 1) if text[place].isalpha() and text[place + 1].isalpha()]
    count = min(max(1, round(len(text) / TYPO_EVERY)), len(places))
    # One typo in each section of the text, from the last to the first, so that earlier positions stay valid.
    for section in reversed(range(count)):
        place = random.choice(places[section * len(places) // count : (section + 1) * len(places) // count])
        first, second = text[place], text[place + 1]
        typo = random.choice((second + first, second, first + first + second))
        text = text[:place] + typo + text[place + 2 :]
    return text


def politeness(text: str, random: Random) -> str:
    """Add a polite phrase."""
    return random.choice(_POLITE).format(text)


def prefix(text: str, random: Random) -> str:
    """Add an opening phrase."""
    return random.choice(_PREFIXES).format(text)


def no_punctuation(text: str, random: Random) -> str:
    """Remove punctuation."""
    return re.sub(r"\s+", " ", "".join(map(_without_punctuation, text))).strip()


# The names are part of the random seed: renaming a perturbation changes its results.
PERTURBATIONS: Mapping[str, Perturbation] = {
    "lower case": lower,
    "upper case": upper,
    "typos": typos,
    "politeness": politeness,
    "a prefix": prefix,
    "no punctuation": no_punctuation,
}


def perturb(text: str, kind: str, seed: int = 0) -> str | None:
    """Return the text after a perturbation, the same for the same seed; None if it is unchanged or empty."""
    perturbed = PERTURBATIONS[kind](text, Random(f"{seed} {kind} {text}"))
    return perturbed if perturbed != text and perturbed.strip() else None


def _without_punctuation(character: str) -> str:
    if not unicodedata.category(character).startswith("P"):
        return character
    return "" if character in _WITHIN_WORDS else " "
