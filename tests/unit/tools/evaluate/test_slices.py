"""Figures by length and by script."""

import pytest

from vllm_lora_router.tools.evaluate.slices import by_length, by_script, script

from .conftest import answer


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
def test_the_script_is_the_one_of_most_letters(text: str, expected: str) -> None:
    assert script(text) == expected


def test_prompts_are_told_apart_by_their_length() -> None:
    texts = ("a" * 25, "b" * 26, "c" * 100, "d" * 101, "e" * 400, "f" * 401)
    found = by_length([answer("legal", "legal" if len(text) < 400 else None, text=text) for text in texts])
    assert [(one.name, one.accuracy.of, one.accuracy.value) for one in found] == [
        ("1 to 25 characters", 1, 1.0),
        ("26 to 50 characters", 1, 1.0),
        ("51 to 100 characters", 1, 1.0),
        ("101 to 400 characters", 2, 0.5),
        ("over 400 characters", 1, 0.0),
    ]


def test_the_script_that_most_prompts_are_in_comes_first() -> None:
    answers = [answer("legal", None, text="закон"), answer("legal", "legal", text="law"), answer(None, None, text="hi")]
    found = by_script(answers)
    assert [(one.name, one.accuracy.of, one.guess and one.guess.of) for one in found] == [
        ("latin", 2, 1),
        ("cyrillic", 1, 1),
    ]
