"""Normalization of texts for keyword matching, and the rules that decide what a word is.

A text is normalized in slices. A slice takes less than a millisecond, whatever characters it contains.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import regex

# Changes with every change of the normalization or of the word boundaries: they decide which keywords match.
MATCHING_VERSION = 2

# A letter, digit or underscore of a script that separates words with spaces. The ranges repeat what the properties
# contain, because the first members of a set are compared first.
_LETTER = r"0-9A-Z_a-z\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{WB=Numeric}\p{WB=ExtendNumLet}"
# A letter of a script that does not: Thai, Lao, Khmer, Myanmar, Han, kana and others.
_UNSPACED = r"[\p{L}&&[\p{WB=Other}\p{WB=Katakana}]]"
_MARK = r"\p{M}"  # vowel signs, accents, ...: they belong to the character that they follow
_FLAG = r"\p{WB=Regional_Indicator}{2}"
_HAS_WORD = regex.compile(rf"[{_LETTER}]|{_FLAG}", regex.V1)
_HAS_UNSPACED = regex.compile(_UNSPACED, regex.V1)
# A word, letters that are in no whole-word keyword, or another visible character; with the space after it. A single
# space stands for all white space.
_TOKEN = regex.compile(
    rf"(?:[{_LETTER}][{_LETTER}{_MARK}]*|{_UNSPACED}[{_UNSPACED}{_MARK}]*|{_FLAG}|\S{_MARK}*) ?", regex.V1
)
_ASCII_TOKEN = re.compile(r"(?:\w+|\S) ?", re.ASCII)  # the same for ASCII texts, in less time
_CLUSTER = regex.compile(rf".{_MARK}*", regex.DOTALL)
# For sets of the standard library's `re`, which finds a character among thousands at once. The Basic Multilingual Plane
# contains the marks of all living scripts without spaces.
MARKS = "".join(regex.findall(_MARK, "".join(map(chr, range(0x10000)))))

_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
# Harakat and other Arabic marks, tatweel, Hebrew points. U+0653 to U+0655, madda and hamza, are parts of letters.
_POINTS = regex.compile(r"[\u0640[[\p{M}&&[\p{scx=Arabic}\p{scx=Hebrew}]]--[\u0653-\u0655]]]+", regex.V1)
_ASCII_FORMS = {
    "'": "\u2018\u2019\u201b\u2032\u00b4\u02bb\u02bc\u055a\u05f3",  # quotation marks, prime, acute, okina, geresh
    '"': "\u201c\u201d\u201e\u201f\u2033\u05f4",
    "-": "\u2010\u2011\u2012\u2013\u2212\u058a\u05be",  # hyphens, figure dash, en dash, minus, maqaf
}
_TO_ASCII = str.maketrans({form: key for key, forms in _ASCII_FORMS.items() for form in forms})
_HAS_ASCII_FORM = regex.compile(f"[{''.join(map(chr, _TO_ASCII))}]")

SLICE_CHARACTERS = 4096
# A character can become 18 characters (U+FDFA), so slices with non-ASCII characters are shorter.
_NON_ASCII_SLICE_CHARACTERS = 1024
_MAX_LOOKBACK = 64  # characters; texts of natural languages have a boundary every few characters
# Marks that follow a character are sorted, and CPython's sort takes quadratic time. The Unicode stream-safe text
# format therefore allows at most 30 marks (https://unicode.org/reports/tr15/#Stream_Safe_Text_Format).
_MAX_MARKS = 30
_GRAPHEME_JOINER = "\u034f"
# All marks are in this class. The two halfwidth voicing marks are letters that become marks.
_MANY_MARKS = regex.compile(rf"[{_MARK}\uff9e\uff9f]{{{_MAX_MARKS + 1},}}")


def normalize(text: str) -> str:
    """Return a text in the form in which keywords and texts are compared, apart from the case of letters.

    1. Default-ignorable characters are removed: soft hyphens, zero-width spaces, joiners and non-joiners (also in
       Persian and Indic words and in emoji), variation selectors, byte-order marks, direction marks.
    2. Typographic apostrophes, quotation marks, hyphens and the en dash become `'`, `"` and `-`.
    3. The Unicode form NFKC makes variants of the same letters equal: composed and decomposed, full-width, ligatures.
    4. Arabic harakat and tatweel and Hebrew points are removed. All other marks are kept: `café` is not `cafe`.

    Steps 1 and 3 and `fold_case` are those of the Unicode form NFKC_Casefold.
    """
    return "".join(normalized_slices(text))


def normalized_slices(text: str) -> Iterator[str]:
    """Yield the normalized text in slices. A slice of the text can become empty."""
    length = SLICE_CHARACTERS if text.isascii() else _NON_ASCII_SLICE_CHARACTERS
    start = 0
    while start < len(text):
        end = _boundary(text, start, start + length)
        piece = text[start:end]
        if not piece.isascii():
            piece = _normalize_slice(piece)
        # A normalized slice may be longer than the slice.
        for begin in range(0, max(1, len(piece)), SLICE_CHARACTERS):
            yield piece[begin : begin + SLICE_CHARACTERS]
        start = end


def fold_case(text: str) -> str:
    """Return a normalized text without the case of its letters."""
    # Python folds the Turkish capital `İ` to an `i` with another dot, but its small letter is `i`.
    return text.casefold().replace("i\u0307", "i")


def words(text: str) -> list[str]:
    """Split a normalized text into words and other visible characters, each with the space after it.

    The boundaries are the default ones of Unicode (https://unicode.org/reports/tr29/#Default_Word_Boundaries), with two
    changes. Letters of scripts without spaces are not split into words. Words also end at apostrophes, full stops and
    other punctuation between letters or digits: the keyword `law` occurs in `law's`, `avocat` in `l'avocat` and `.NET`
    in `ASP.NET`.
    """
    return (_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text)


def characters(text: str) -> list[str]:
    """Split a normalized text into characters, each with the marks that follow it."""
    return _CLUSTER.findall(text)


def is_substring_keyword(text: str) -> bool:
    """Return whether a normalized keyword matches anywhere in a text, without regard to word boundaries."""
    return not _HAS_WORD.search(text) or bool(_HAS_UNSPACED.search(text))


def collapse_white_space(text: str) -> str:
    """Return the text with a single space in place of each run of white space, at its ends too."""
    collapsed = " ".join(text.split())
    before, after = " " if text[:1].isspace() else "", " " if text[-1:].isspace() else ""
    return f"{before}{collapsed}{after}"


def _normalize_slice(piece: str) -> str:
    # NFKC replaces the acute accent and the double prime, and makes primes and minus signs of other characters.
    piece = _punctuation_to_ascii(_IGNORABLE.sub("", piece))
    piece = unicodedata.normalize("NFKC", _MANY_MARKS.sub(_limit_marks, piece))
    return _punctuation_to_ascii(_POINTS.sub("", piece))


def _punctuation_to_ascii(text: str) -> str:
    return text.translate(_TO_ASCII) if _HAS_ASCII_FORM.search(text) else text


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
    """Return whether a character, or one after it, can combine with the one before it.

    These are marks, vowels and finals of Hangul, and the ignorable characters that may separate them from a letter.
    """
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.category(first)[0] == "M" or "\u1160" <= first <= "\u11ff" or bool(_IGNORABLE.match(character))


def _limit_marks(run: regex.Match[str]) -> str:
    limited: list[str] = []
    marks = 0
    for character in run[0]:
        marks = marks + 1 if _joins_previous(character) else 0
        if marks > _MAX_MARKS:
            limited.append(_GRAPHEME_JOINER)
            marks = 1
        limited.append(character)
    return "".join(limited)
