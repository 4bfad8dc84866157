"""Accuracy by length and by script."""

import pytest

from vllm_lora_router.tools.evaluate.slices import by_length, by_script, script

from .conftest import outcome


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is a fever?", "latin"),
        ("Größe, s'il vous plaît", "latin"),
        ("Что такое температура?", "cyrillic"),
        ("什么会引起高血压？", "cjk"),
        ("これはペンです", "hiragana"),
        ("ما هي الحمى؟", "arabic"),
        ("fever とは何ですか、教えてください", "hiragana"),
        ("ＦＥＶＥＲ", "latin"),
        ("𝖋𝖊𝖛𝖊𝖗", "latin"),
        ("12 + 30 = ?", "none"),
        ("🦄", "none"),
    ],
)
def test_script_is_that_of_most_letters(text: str, expected: str) -> None:
    assert script(text) == expected


def test_prompts_are_grouped_by_length() -> None:
    texts = ("a" * 25, "b" * 26, "c" * 100, "d" * 101, "e" * 400, "f" * 401)
    slices = by_length([outcome("legal", "legal" if len(text) < 400 else None, text=text) for text in texts])
    assert [(subset.name, subset.accuracy.n, subset.accuracy.value) for subset in slices] == [
        ("1 to 25 characters", 1, 1.0),
        ("26 to 50 characters", 1, 1.0),
        ("51 to 100 characters", 1, 1.0),
        ("101 to 400 characters", 2, 0.5),
        ("over 400 characters", 1, 0.0),
    ]


def test_most_frequent_script_comes_first() -> None:
    outcomes = [
        outcome("legal", None, text="закон"),
        outcome("legal", "legal", text="law"),
        outcome(None, None, text="hi"),
    ]
    slices = by_script(outcomes)
    assert [(subset.name, subset.accuracy.n, subset.best_guess and subset.best_guess.n) for subset in slices] == [
        ("latin", 2, 1),
        ("cyrillic", 1, 1),
    ]
