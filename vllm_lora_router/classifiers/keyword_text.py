"""Normalization of texts for keyword matching, and the rule that decides what a word is.

A text is normalized in slices. A slice takes less than a millisecond, whatever characters it contains.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

# Scripts that do not separate words with spaces: Thai to Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"[^\W{_UNSPACED}]"  # a letter, digit or underscore of a script that separates words with spaces
_HAS_LETTER = re.compile(_LETTER)
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")

# A word, a run of characters that are in no whole-word keyword, or another visible character; with the space after it.
# A single space stands for all white space.
TOKEN = re.compile(rf"(?:{_LETTER}+|[{_UNSPACED}]+|\S) ?")

SLICE_CHARACTERS = 4096
# A character can become 18 characters (U+FDFA), so slices with non-ASCII characters are shorter.
_NON_ASCII_SLICE_CHARACTERS = 1024
_MAX_LOOKBACK = 64  # characters; texts of natural languages have a boundary every few characters
# Marks that follow a character are sorted, and CPython's sort takes quadratic time. The Unicode stream-safe text
# format therefore allows at most 30 marks (https://unicode.org/reports/tr15/#Stream_Safe_Text_Format).
_MAX_MARKS = 30
_GRAPHEME_JOINER = "\u034f"
# All marks are in this class. The two halfwidth voicing marks are letters that become marks.
_MANY_MARKS = re.compile(rf"(?:[^\w\s\x00-\x7f]|[\uff9e\uff9f]){{{_MAX_MARKS + 1},}}")


def normalize(text: str) -> str:
    """Return the text in the Unicode form NFKC, in which variants of the same letters are equal."""
    return "".join(normalized_slices(text))


def normalized_slices(text: str) -> Iterator[str]:
    """Yield the normalized text in slices."""
    length = SLICE_CHARACTERS if text.isascii() else _NON_ASCII_SLICE_CHARACTERS
    start = 0
    while start < len(text):
        end = _boundary(text, start, start + length)
        piece = text[start:end]
        if not piece.isascii():
            piece = unicodedata.normalize("NFKC", _MANY_MARKS.sub(_limit_marks, piece))
        # A normalized slice may be longer than the slice.
        for begin in range(0, len(piece), SLICE_CHARACTERS):
            yield piece[begin : begin + SLICE_CHARACTERS]
        start = end


def is_substring_keyword(text: str) -> bool:
    """Return whether a normalized keyword matches anywhere in a text, without regard to word boundaries."""
    return not _HAS_LETTER.search(text) or bool(_HAS_UNSPACED.search(text))


def collapse_white_space(text: str) -> str:
    """Return the text with a single space in place of each run of white space, at its ends too."""
    collapsed = " ".join(text.split())
    before, after = " " if text[:1].isspace() else "", " " if text[-1:].isspace() else ""
    return f"{before}{collapsed}{after}"


def _boundary(text: str, start: int, end: int) -> int:
    """Return the last position up to `end` at which a slice can end without a change of the normalized text."""
    if end >= len(text):
        return len(text)
    for position in range(end, max(start, end - _MAX_LOOKBACK), -1):
        if not _joins_previous(text[position]):
            return position
    return end


@lru_cache(4096)
def _joins_previous(character: str) -> bool:
    """Return whether a character can combine with the one before it: marks, and vowels and finals of Hangul."""
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.category(first)[0] == "M" or "\u1160" <= first <= "\u11ff"


def _limit_marks(run: re.Match[str]) -> str:
    characters: list[str] = []
    marks = 0
    for character in run[0]:
        marks = marks + 1 if _joins_previous(character) else 0
        if marks > _MAX_MARKS:
            characters.append(_GRAPHEME_JOINER)
            marks = 1
        characters.append(character)
    return "".join(characters)
