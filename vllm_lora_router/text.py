"""Text helpers: printable text for logs and terminals, and nearest-name suggestions for error messages."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from heapq import nlargest
from itertools import takewhile

# The comparison of two names takes up to a millisecond, and a file may have 100 unknown names among 10,000 valid ones.
_MAX_COMPARED_NAMES = 20
_MAX_COMPARED_CHARACTERS = 100


def printable(text: str) -> str:
    """Escape every character that is not printable, such as line breaks and control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def quoted(value: object, max_characters: int = 100) -> str:
    """Return a value as an error message shows it: in quotes if it is text, and cut if it is long."""
    if isinstance(value, str) and len(value) > max_characters:
        return f"{value[:max_characters]!r}... ({len(value):,} characters)"
    return repr(value)


def shortened(text: str, max_characters: int = 100) -> str:
    """Return a text without quotes as an error message shows it: printable, and cut if it is long."""
    return printable(text if len(text) <= max_characters else f"{text[:max_characters]}...")


def suggest(name: object, valid: Iterable[str]) -> str:
    """Return `; did you mean 'medical-lora'?` with the nearest valid name, or an empty string if there is none."""
    text = str(name)
    if len(text) > _MAX_COMPARED_CHARACTERS:
        return ""
    names = [candidate for candidate in valid if len(candidate) <= 2 * len(text) + 10]
    if len(names) > _MAX_COMPARED_NAMES:
        names = nlargest(_MAX_COMPARED_NAMES, names, key=lambda candidate: _equal_ends(candidate, text))
    matches = get_close_matches(text, names, n=1, cutoff=0.6)
    if not matches:
        folded = {candidate.casefold(): candidate for candidate in names}
        matches = [folded[match] for match in get_close_matches(text.casefold(), list(folded), n=1, cutoff=0.6)]
    if not matches:
        return ""
    if _looks_equal(matches[0], text):
        return f"; did you mean {matches[0]!a} (not {text!a})?"
    return f"; did you mean {matches[0]!r}?"


def _equal_ends(left: str, right: str) -> int:
    """Return how many characters two names have in common at their beginning and at their end, in any case."""
    left, right = left.casefold(), right.casefold()
    ends = (zip(left, right, strict=False), zip(reversed(left), reversed(right), strict=False))
    return sum(1 for end in ends for _ in takewhile(lambda pair: pair[0] == pair[1], end))


def _looks_equal(left: str, right: str) -> bool:
    """Return whether two texts have the same characters, composed differently."""
    return unicodedata.normalize("NFKC", left) == unicodedata.normalize("NFKC", right)
