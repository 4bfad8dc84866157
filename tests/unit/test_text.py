"""Printable text and nearest-name suggestions."""

import pytest

from vllm_lora_router.text import printable, suggest


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
