"""The response headers that describe a decision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from vllm_lora_router.observability.response_headers import HEADER_NAMES, decision_headers, encode_value
from vllm_lora_router.types import AppliedEdit, Candidate, Decision

if TYPE_CHECKING:
    from .conftest import MakeDecision


def headers(decision: Decision) -> dict[str, str]:
    return {name.decode("ascii"): value.decode("ascii") for name, value in decision_headers(decision)}


def test_routed_decision_has_eight_headers(make_decision: MakeDecision) -> None:
    assert headers(make_decision(applied=AppliedEdit(system_prompt=True, reasoning=True))) == {
        "x-vsr-selected-category": "medical",
        "x-vsr-selected-model": "medical-lora",
        "x-vsr-selected-reasoning": "on",
        "x-vsr-selected-confidence": "0.9100",
        "x-vsr-injected-system-prompt": "true",
        "x-lora-router-method": "domain",
        "x-lora-router-reason": "routed",
        "x-lora-router-overhead-ms": "3.142",
    }


def test_decision_below_threshold_has_eight_headers(make_decision: MakeDecision) -> None:
    assert headers(make_decision(None, "base", reason="below_threshold", confidence=None)) == {
        "x-vsr-selected-category": "",
        "x-vsr-selected-model": "base",
        "x-vsr-selected-reasoning": "off",
        "x-vsr-selected-confidence": "",
        "x-vsr-injected-system-prompt": "false",
        "x-lora-router-method": "",
        "x-lora-router-reason": "below_threshold",
        "x-lora-router-overhead-ms": "3.142",
    }
    assert len(HEADER_NAMES) == 9


def test_arm_header_is_present_only_with_an_arm(make_decision: MakeDecision) -> None:
    decision = make_decision()
    assert "x-lora-router-arm" not in headers(decision)
    assigned = replace(decision, candidate=replace(decision.candidate, arm="medical-lora#2"))
    assert headers(assigned)["x-lora-router-arm"] == "medical-lora#2"


def test_observe_mode_names_the_model_that_routing_would_use(make_decision: MakeDecision) -> None:
    decision = make_decision()
    observed = replace(decision, reason="observe", candidate=Candidate("base", None))
    assert headers(observed)["x-vsr-selected-model"] == "medical-lora"
    assert headers(observed)["x-lora-router-reason"] == "observe"


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
def test_names_are_percent_encoded(make_decision: MakeDecision, name: str, value: str) -> None:
    result = headers(make_decision(name, name))
    assert (result["x-vsr-selected-category"], result["x-vsr-selected-model"]) == (value, value)
    assert unquote(value) == name


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_name_can_be_decoded_from_its_header(name: str) -> None:
    value = encode_value(name)
    assert unquote(value) == name
    assert re.fullmatch(r"[!-~]([ -~]*[!-~])?|", value)


def test_unpaired_surrogate_is_replaced() -> None:
    assert encode_value("a\ud83d") == "a?"
