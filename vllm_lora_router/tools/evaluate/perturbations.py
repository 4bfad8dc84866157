"""Small changes to a prompt that do not change what it asks."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from random import Random

Change = Callable[[str, Random], str]

TYPO_EVERY = 30  # characters
_POLITE = ("please {}", "could you tell me {}", "{} thanks!")
_PREFIXES = ("hi, {}", "quick question: {}")
_WITHIN_WORDS = "'’-"  # who leaves these out writes one word


def lower(text: str, chance: Random) -> str:
    return text.lower()


def upper(text: str, chance: Random) -> str:
    return text.upper()


def typos(text: str, chance: Random) -> str:
    """One slip about every 30 characters, and at least one: two letters swapped, one left out, or one doubled."""
    places = [place for place in range(len(text) - 1) if text[place].isalpha() and text[place + 1].isalpha()]
    count = min(max(1, round(len(text) / TYPO_EVERY)), len(places))
    # One in each stretch of the text, from its end, so that the places before stay what they are.
    for part in reversed(range(count)):
        place = chance.choice(places[part * len(places) // count : (part + 1) * len(places) // count])
        one, other = text[place], text[place + 1]
        slip = chance.choice((other + one, other, one + one + other))
        text = text[:place] + slip + text[place + 2 :]
    return text


def politeness(text: str, chance: Random) -> str:
    return chance.choice(_POLITE).format(text)


def prefix(text: str, chance: Random) -> str:
    return chance.choice(_PREFIXES).format(text)


def no_punctuation(text: str, chance: Random) -> str:
    kept = [_bare(letter) for letter in text]
    return re.sub(r"\s+", " ", "".join(kept)).strip()


CHANGES: Mapping[str, Change] = {
    "lower case": lower,
    "upper case": upper,
    "typos": typos,
    "politeness": politeness,
    "a prefix": prefix,
    "no punctuation": no_punctuation,
}


def changed(text: str, kind: str, seed: int = 0) -> str | None:
    """The text with a change of `CHANGES`, the same for the same seed; None where it changes nothing."""
    found = CHANGES[kind](text, Random(f"{seed} {kind} {text}"))
    return found if found != text and found.strip() else None


def _bare(letter: str) -> str:
    if not unicodedata.category(letter).startswith("P"):
        return letter
    return "" if letter in _WITHIN_WORDS else " "
