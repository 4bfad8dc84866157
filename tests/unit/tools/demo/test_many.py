"""The answers of the adapters that are made by the thousand tell one from any other, and halves of two from both."""

from __future__ import annotations

import pytest

from vllm_lora_router.tools.demo.answers import ADAPTERS, BASE_ANSWER
from vllm_lora_router.tools.demo.many import MOST, ManyAdapters, words


def test_five_thousand_adapters_have_five_thousand_answers() -> None:
    answers = {ManyAdapters.answer(number) for number in range(5_000)}
    assert len(answers) == 5_000
    assert not answers & {BASE_ANSWER, *(recipe.answer for recipe in ADAPTERS)}


def test_no_word_stands_twice_in_an_answer() -> None:
    assert all(len(set(words(number))) == 5 for number in range(5_000))


def test_the_words_after_the_first_are_of_one_adapter_only() -> None:
    assert len({words(number)[1:] for number in range(MOST)}) == MOST


def test_the_first_word_never_comes_later_in_any_answer() -> None:
    first = {words(number)[0] for number in range(MOST)}
    later = {word for number in range(MOST) for word in words(number)[1:]}
    assert not first & later


def test_neighbours_begin_differently() -> None:
    for number in range(5_000):
        assert all(mine != next_one for mine, next_one in zip(words(number)[:2], words(number + 1)[:2], strict=True))


@pytest.mark.parametrize("number", [-1, MOST])
def test_there_are_no_others(number: int) -> None:
    with pytest.raises(ValueError, match=f"there is no adapter {number}: they are numbered from 0 to {MOST - 1}"):
        words(number)
