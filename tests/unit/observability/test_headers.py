"""The headers that tell a client what was decided."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from vllm_lora_router.observability.response_headers import NAMES, encoded, headers
from vllm_lora_router.types import AppliedEdit, Candidate, Decision

if TYPE_CHECKING:
    from .conftest import Decide


def read(decision: Decision) -> dict[str, str]:
    return {name.decode("ascii"): value.decode("ascii") for name, value in headers(decision)}


def test_a_routed_decision_has_all_eight(decide: Decide) -> None:
    assert read(decide(written=AppliedEdit(system_prompt=True, reasoning=True))) == {
        "x-vsr-selected-category": "medical",
        "x-vsr-selected-model": "medical-lora",
        "x-vsr-selected-reasoning": "on",
        "x-vsr-selected-confidence": "0.9100",
        "x-vsr-injected-system-prompt": "true",
        "x-lora-router-method": "domain",
        "x-lora-router-reason": "routed",
        "x-lora-router-overhead-ms": "3.142",
    }


def test_a_decision_that_nobody_was_sure_of_has_all_eight_too(decide: Decide) -> None:
    assert read(decide(None, "base", reason="below_threshold", confidence=None)) == {
        "x-vsr-selected-category": "",
        "x-vsr-selected-model": "base",
        "x-vsr-selected-reasoning": "off",
        "x-vsr-selected-confidence": "",
        "x-vsr-injected-system-prompt": "false",
        "x-lora-router-method": "",
        "x-lora-router-reason": "below_threshold",
        "x-lora-router-overhead-ms": "3.142",
    }
    assert len(NAMES) == 9


def test_an_arm_is_named_where_one_was_drawn(decide: Decide) -> None:
    decision = decide()
    assert "x-lora-router-arm" not in read(decision)
    drawn = replace(decision, candidate=replace(decision.candidate, arm="medical-lora#2"))
    assert read(drawn)["x-lora-router-arm"] == "medical-lora#2"


def test_who_observes_is_told_what_would_have_served(decide: Decide) -> None:
    decision = decide()
    observed = replace(decision, reason="observe", candidate=Candidate("base", None))
    assert read(observed)["x-vsr-selected-model"] == "medical-lora"
    assert read(observed)["x-lora-router-reason"] == "observe"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Größe/量", "Gr%C3%B6%C3%9Fe/%E9%87%8F"),
        ("two\r\nx-evil: 1", "two%0D%0Ax-evil: 1"),
        ("100% sure", "100%25 sure"),
        ("%41", "%2541"),
        ("computer science", "computer science"),
        (" blank ", "%20blank%20"),
        ("   ", "%20%20%20"),
        ("tab\there\x7f\x00", "tab%09here%7F%00"),
        ("a\u2028b\x85", "a%E2%80%A8b%C2%85"),
    ],
)
def test_names_are_percent_encoded_where_a_header_could_not_carry_them(decide: Decide, name: str, value: str) -> None:
    found = read(decide(name, name))
    assert (found["x-vsr-selected-category"], found["x-vsr-selected-model"]) == (value, value)
    assert unquote(value) == name


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_name_comes_back_from_its_header_and_never_breaks_it(name: str) -> None:
    value = encoded(name)
    assert unquote(value) == name
    assert re.fullmatch(r"[!-~]([ -~]*[!-~])?|", value)


def test_half_an_emoji_does_no_harm() -> None:
    assert encoded("a\ud83d") == "a?"
