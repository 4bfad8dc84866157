"""The parts of a long text that a model reads."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lora_router.classifiers.models.truncation import windows


class Words:
    """A tokenizer of one token a word and two special ones, as transformers' fast tokenizers are called."""

    def __init__(self, token: str = r"\S+") -> None:
        self.token = re.compile(token, re.DOTALL)
        self.longest = 0  # characters it was given at once

    def num_special_tokens_to_add(self) -> int:
        return 2

    def __call__(self, text: str, **options: Any) -> dict[str, list[tuple[int, int]]]:
        assert options == {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        self.longest = max(self.longest, len(text))
        return {"offset_mapping": [match.span() for match in self.token.finditer(text)]}


class Bytes(Words):
    """Three tokens a character, as byte-level tokenizers make of scripts that they were not trained on."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[tuple[int, int]]]:
        return {"offset_mapping": [(place, place + 1) for place in range(len(text)) for _ in range(3)]}


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last + 1))


def test_a_short_text_is_not_even_tokenized() -> None:
    tokenizer = Words()
    assert windows("short text", tokenizer, 16, 2) == ["short text"]
    assert tokenizer.longest == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_text_that_fits_comes_back_as_it_is(count: int) -> None:
    text = f"  {words(1, 10)} \n"
    assert windows(text, Words(), 12, count) == [text]


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (1, [(1, 10)]),
        (2, [(1, 10), (91, 100)]),
        (3, [(1, 10), (46, 55), (91, 100)]),
        (4, [(1, 10), (31, 40), (61, 70), (91, 100)]),
    ],
)
def test_a_long_text_is_its_head_its_tail_and_what_lies_evenly_between(
    count: int, parts: list[tuple[int, int]]
) -> None:
    assert windows(words(1, 100), Words(), 12, count) == [words(*part) for part in parts]


def test_windows_that_would_be_the_same_come_once() -> None:
    assert windows(words(1, 11), Words(), 12, 5) == [words(1, 10), words(2, 11)]


def test_a_text_of_few_characters_and_many_tokens_is_cut_by_its_tokens() -> None:
    text = "高血压的原因是什么呢"
    assert windows(text, Bytes(), 17, 2) == ["高血压的原", "因是什么呢"]


def test_a_megabyte_is_read_at_its_ends_and_costs_no_more_than_its_windows() -> None:
    tokenizer = Words()
    text = words(1, 200_000)
    head, tail = windows(text, tokenizer, 12, 2)
    assert (head, tail) == (words(1, 10), words(199_991, 200_000))
    assert tokenizer.longest < 500


def test_a_megabyte_without_a_single_blank_is_bounded() -> None:
    tokenizer = Words(r"\S{1,4}")
    parts = windows("a" * 1_000_000, tokenizer, 12, 2)
    assert parts == ["a" * 40, "a" * 40]
    assert tokenizer.longest < 500


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.text(alphabet="ab é高\n", min_size=1, max_size=400),
    st.integers(min_value=8, max_value=40),
    st.integers(min_value=1, max_value=6),
)
def test_every_window_is_a_part_of_the_text_that_fits(text: str, max_tokens: int, count: int) -> None:
    tokenizer = Words(r"\S{1,2}")
    parts = windows(text, tokenizer, max_tokens, count)
    assert 1 <= len(parts) <= count
    for part in parts:
        assert part in text
        assert len(tokenizer.token.findall(part)) + 2 <= max_tokens
    if len(parts) > 1:
        assert text.lstrip().startswith(parts[0])
        assert text.rstrip().endswith(parts[-1])
