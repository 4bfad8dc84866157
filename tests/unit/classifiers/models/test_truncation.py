"""Windows: the parts of a long text that a model reads."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lora_router.classifiers.models.truncation import windows


class Words:
    """A tokenizer with one token for each word and two special tokens, called like a tokenizer of transformers."""

    def __init__(self, token: str = r"\S+") -> None:
        self.token = re.compile(token, re.DOTALL)
        self.max_characters = 0  # of all texts that were tokenized

    def num_special_tokens_to_add(self) -> int:
        return 2

    def __call__(self, text: str, **options: Any) -> dict[str, list[tuple[int, int]]]:
        assert options == {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        self.max_characters = max(self.max_characters, len(text))
        return {"offset_mapping": [match.span() for match in self.token.finditer(text)]}


class Bytes(Words):
    """A tokenizer with three tokens for each character, like byte-level tokenizers on scripts without training data."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[tuple[int, int]]]:
        return {"offset_mapping": [(place, place + 1) for place in range(len(text)) for _ in range(3)]}


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last + 1))


def test_a_short_text_is_not_tokenized() -> None:
    tokenizer = Words()
    assert windows("short text", tokenizer, 16, 2) == ["short text"]
    assert tokenizer.max_characters == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_text_that_fits_is_returned_unchanged(count: int) -> None:
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
def test_windows_of_a_long_text_are_evenly_spaced_from_head_to_tail(count: int, parts: list[tuple[int, int]]) -> None:
    assert windows(words(1, 100), Words(), 12, count) == [words(*part) for part in parts]


def test_equal_windows_are_returned_once() -> None:
    assert windows(words(1, 11), Words(), 12, 5) == [words(1, 10), words(2, 11)]


def test_a_text_with_few_characters_and_many_tokens_is_split_by_tokens() -> None:
    text = "高血压的原因是什么呢"
    assert windows(text, Bytes(), 17, 2) == ["高血压的原", "因是什么呢"]


def test_of_a_very_long_text_only_both_ends_are_tokenized() -> None:
    tokenizer = Words()
    text = words(1, 200_000)
    head, tail = windows(text, tokenizer, 12, 2)
    assert (head, tail) == (words(1, 10), words(199_991, 200_000))
    assert tokenizer.max_characters < 500


def test_a_very_long_text_without_spaces_is_bounded() -> None:
    tokenizer = Words(r"\S{1,4}")
    parts = windows("a" * 1_000_000, tokenizer, 12, 2)
    assert parts == ["a" * 40, "a" * 40]
    assert tokenizer.max_characters < 500


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.text(alphabet="ab é高\n", min_size=1, max_size=400),
    st.integers(min_value=8, max_value=40),
    st.integers(min_value=1, max_value=6),
)
def test_every_window_is_a_part_of_the_text_and_fits_the_model(text: str, max_tokens: int, count: int) -> None:
    tokenizer = Words(r"\S{1,2}")
    parts = windows(text, tokenizer, max_tokens, count)
    assert 1 <= len(parts) <= count
    for part in parts:
        assert part in text
        assert len(tokenizer.token.findall(part)) + 2 <= max_tokens
    if len(parts) > 1:
        assert text.lstrip().startswith(parts[0])
        assert text.rstrip().endswith(parts[-1])
