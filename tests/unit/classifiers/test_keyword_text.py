"""Normalization of texts for keyword matching."""

import re
import sys
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from vllm_lora_router.classifiers.keyword_text import (
    SLICE_CHARACTERS,
    _joins_previous,
    collapse_white_space,
    normalize,
    normalized_slices,
    words,
)

# Representatives of the values of Word_Break in the official WordBreakTest.txt: ALetter, Hebrew_Letter, Numeric,
# ExtendNumLet; and letters of other scripts.
JOINED = "Aא0_ÄбΣبहகᏣ한ሀ\U0001e922"


@pytest.mark.parametrize(
    "text",
    [
        "Größe und Länge: ﬁle ①, ｶﾞﾝ; " * 1000,
        "cafe\u0301 " * 3000,
        "\u1112\u1161\u11ab" * 3000,  # decomposed Hangul
        "हिन्दी" * 3000,
        "\ufdfa" * 3000,
        "\U0001f600" * 3000,
        "x\ud800" * 3000,
    ],
)
def test_slices_are_short_and_together_the_normalized_text(text: str) -> None:
    slices = list(normalized_slices(text))
    assert "".join(slices) == unicodedata.normalize("NFKC", text)
    assert max(map(len, slices)) <= SLICE_CHARACTERS


@pytest.mark.parametrize(
    "unit",
    [
        "cafe\u00ad\u0301 ",
        "co\u2011op \u201cdon\u2019t\u201d ",
        "مُحَمَّد كتـاب ",
        "שָׁלוֹם ",
        "\u1112\u00ad\u1161\u200b\u11ab",
    ],
)
def test_slices_do_not_change_what_is_removed_and_replaced(unit: str) -> None:
    assert "".join(normalized_slices(unit * 3000)) == normalize(unit) * 3000


def test_a_normalized_text_stays_the_same_if_it_is_normalized_again() -> None:
    once = normalize("\n".join(map(chr, range(0x20000))))
    twice = normalize(once)
    assert [pair for pair in zip(once.split("\n"), twice.split("\n"), strict=True) if pair[0] != pair[1]] == []


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\uff9e\u0301", "\u0f73", "\u0344\u0316"])
def test_runs_of_marks_are_cut(marks: str) -> None:
    """CPython sorts a run of marks in quadratic time."""
    for run in re.split("[^\\W_]|\u034f", normalize("a" + marks * 20_000)):
        assert len(run) <= 130  # 30 marks, each of which becomes up to 4


def test_a_text_is_not_cut_before_a_character_that_combines_with_the_previous_one() -> None:
    seconds = set()
    for code in range(sys.maxunicode + 1):
        first = unicodedata.normalize("NFKD", chr(code))[:1]
        if unicodedata.combining(first):
            assert _joins_previous(chr(code))
        decomposition = unicodedata.decomposition(chr(code)).split()
        if len(decomposition) == 2 and not decomposition[0].startswith("<"):
            seconds.add(chr(int(decomposition[1], 16)))
    assert len(seconds) > 50 and all(map(_joins_previous, seconds))


@pytest.mark.parametrize(
    ("text", "collapsed"), [("", ""), ("a\n\u3000 b", "a b"), ("\t a", " a"), ("a \n", "a "), ("a", "a")]
)
def test_runs_of_white_space_become_one_space(text: str, collapsed: str) -> None:
    assert collapse_white_space(text) == collapsed


@pytest.mark.parametrize("mark", ["", "\u0308", "\u0308\u0301"])
def test_words_end_where_unicode_says(mark: str) -> None:
    """The pairs of the official WordBreakTest.txt, also with marks between (rules WB4, 5, 8, 9, 10, 13a, 13b, 999)."""
    for first in JOINED:
        for second in JOINED:
            assert words(first + mark + second) == [first + mark + second]
        for other in "!+😀∈":
            assert words(first + mark + other) == [first + mark, other]
            assert words(other + mark + first) == [other + mark, first]


@given(st.text(JOINED + "\u0308\u0301 !+(∈😀", max_size=12))
def test_words_are_those_of_the_default_word_boundaries(text: str) -> None:
    """`regex` implements them. Its versions before 2026 let a mark at the beginning of a text join a word."""
    text = text.lstrip("\u0308\u0301")
    letters = regex.compile(r"\w*[\w--\p{M}]\w*", regex.V1)
    expected = regex.split(r"\b", text, flags=regex.V1 | regex.WORD)
    tokens = [token.strip() for token in words(collapse_white_space(text))]
    assert list(filter(letters.fullmatch, tokens)) == list(filter(letters.fullmatch, expected))
