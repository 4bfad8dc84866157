"""Printable text and nearest-name suggestions."""

import pytest

from vllm_lora_router import text as text_module
from vllm_lora_router.text import printable, quoted, suggest


def test_printable_keeps_other_scripts_and_emoji() -> None:
    assert printable("Größe/量 🩺") == "Größe/量 🩺"


def test_printable_escapes_a_lone_surrogate() -> None:
    assert printable("a\ud83d") == r"a\ud83d"


def test_printable_escapes_line_breaks_and_control_characters() -> None:
    assert printable("a\r\nb\u2028c\x1b[31md\x85e\u202ef") == r"a\r\nb\u2028c\x1b[31md\x85e\u202ef"


@pytest.mark.parametrize("name", ["medcal-lora", "Medical-Lora", "MEDICAL-LORA"])
def test_suggest_names_the_nearest_valid_name(name: str) -> None:
    assert suggest(name, ["legal-lora", "medical-lora"]) == "; did you mean 'medical-lora'?"


def test_suggest_returns_an_empty_string_if_no_name_is_near() -> None:
    assert suggest("zzz", ["legal-lora", "medical-lora"]) == ""


def test_suggest_compares_a_bounded_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    compare = text_module.get_close_matches

    def count(word: str, names: list[str], n: int, cutoff: float) -> list[str]:
        compared.append(len(names))
        return compare(word, names, n=n, cutoff=cutoff)

    monkeypatch.setattr(text_module, "get_close_matches", count)
    names = [f"adapter-{number}" for number in range(10_000)]
    assert suggest("adaptor-4711", names) == "; did you mean 'adapter-4711'?"
    assert suggest("x" * 10_000, names) == ""
    assert 0 < sum(compared) <= 40


def test_suggest_shows_the_code_points_of_names_that_look_equal() -> None:
    assert suggest("cafe\u0301", ["caf\u00e9"]) == r"; did you mean 'caf\xe9' (not 'cafe\u0301')?"


def test_quoted_cuts_a_long_text() -> None:
    assert quoted("it's") == '"it\'s"' and quoted(5) == "5"
    assert quoted("x" * 5000, 3) == "'xxx'... (5,000 characters)"
