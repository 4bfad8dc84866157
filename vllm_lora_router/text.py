"""Text helpers: printable text for logs and terminals, and nearest-name suggestions for error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def printable(text: str) -> str:
    """Escape every character that is not printable, such as line breaks and control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def suggest(name: object, valid: Iterable[str]) -> str:
    """Return `; did you mean 'medical-lora'?` with the nearest valid name, or an empty string if none is near."""
    names = list(valid)
    matches = get_close_matches(str(name), names, n=1, cutoff=0.6)
    if not matches:
        folded = {candidate.casefold(): candidate for candidate in names}
        matches = [folded[match] for match in get_close_matches(str(name).casefold(), list(folded), n=1, cutoff=0.6)]
    return f"; did you mean {matches[0]!r}?" if matches else ""
