"""Answers of the computed demo adapters are unique."""

from __future__ import annotations

import pytest

from vllm_lora_router.tools.demo.answers import ADAPTERS, BASE_ANSWER
from vllm_lora_router.tools.demo.many import ADAPTER_COUNT, ManyAdapters, words


def test_five_thousand_adapters_have_five_thousand_answers() -> None:
    answers = {ManyAdapters.answer(number) for number in range(5_000)}
    assert len(answers) == 5_000
    assert not answers & {BASE_ANSWER, *(recipe.answer for recipe in ADAPTERS)}


def test_answer_contains_each_word_once() -> None:
    assert all(len(set(words(number))) == 5 for number in range(5_000))


def test_words_after_the_first_are_unique_to_one_adapter() -> None:
    assert len({words(number)[1:] for number in range(ADAPTER_COUNT)}) == ADAPTER_COUNT


def test_first_words_never_occur_later_in_an_answer() -> None:
    first = {words(number)[0] for number in range(ADAPTER_COUNT)}
    later = {word for number in range(ADAPTER_COUNT) for word in words(number)[1:]}
    assert not first & later


def test_consecutive_adapters_differ_in_their_first_two_words() -> None:
    for number in range(5_000):
        assert all(word != next_word for word, next_word in zip(words(number)[:2], words(number + 1)[:2], strict=True))


@pytest.mark.parametrize("number", [-1, ADAPTER_COUNT])
def test_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(
        ValueError, match=f"there is no adapter {number}: adapters are numbered from 0 to {ADAPTER_COUNT - 1}"
    ):
        words(number)
