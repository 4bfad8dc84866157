"""Normalization of texts for keyword matching."""

import re
import sys
import unicodedata

import pytest

from vllm_lora_router.classifiers.keyword_text import (
    SLICE_CHARACTERS,
    _joins_previous,
    collapse_white_space,
    normalize,
    normalized_slices,
)


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
