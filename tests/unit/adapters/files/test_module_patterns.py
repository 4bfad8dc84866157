"""Patterns of an adapter are matched as in PEFT and vLLM, and refused if a backtracking matcher may need too long."""

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lora_router.adapters.files.module_patterns import MAX_ATTEMPTS, ModulePatterns, pattern_problem

MODULES = [
    f"model.layers.{layer}.{module}"
    for layer, module in product(range(32), ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))
]

COMMON = [
    "q_proj",
    "model.layers.3.self_attn.q_proj",
    r"model\.layers\.3\.self_attn\.q_proj",
    r"^model\.layers\.[0-9]\.self_attn\.(q|k)_proj$",
    r"layers\.(1[0-9]|2[0-9]|30)\.mlp\.down_proj",
    r".*\.q_proj",
    r".*layers\.\d+\..*(q|v)_proj",
    r"layers\.\d{1,2}\.\w+\.(?:q|k)_proj",
    r"layers.2[^.]*.self_attn.[qk]_proj",
]


@pytest.mark.parametrize("pattern", COMMON)
def test_common_pattern_is_accepted_and_matches_as_in_peft(pattern: str) -> None:
    assert pattern_problem(pattern) is None
    patterns = ModulePatterns({pattern: 8})
    assert patterns.attempts(MODULES) < MAX_ATTEMPTS
    for module in MODULES:
        assert (patterns.value_of(module) is not None) == (re.match(rf"(.*\.)?({pattern})$", module) is not None)


def test_first_pattern_that_matches_gives_the_value() -> None:
    patterns = ModulePatterns({"3.self_attn.q_proj": 8, "q_proj": 16, "self_attn.q_proj": 32})
    assert patterns.value_of("model.layers.3.self_attn.q_proj") == 8
    assert patterns.value_of("model.layers.4.self_attn.q_proj") == 16
    assert patterns.value_of("model.layers.4.self_attn.k_proj") is None


def test_parameters_of_experts_match_under_their_own_names() -> None:
    patterns = ModulePatterns({"experts.gate_up_proj": 8, "experts.down_proj": 16})
    assert patterns.value_of("model.layers.0.mlp.experts.base_layer") == 8
    assert patterns.value_of("model.layers.0.mlp.experts") == 16


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|aa)+c",
        "(a*)*",
        "(a){1000}",
        "(a?)?",
        r"(a)\1",
        "(?=a)a",
        "(?i)q_proj",
        "(?P<name>a)",
        "a*+",
        "a**",
        "a{e<=3}",
        "*a",
        "(?R)",
        r"\p{L}",
        r"\b",
        "(",
        "a)(b",
        "[z-a]",
        "[",
        "\\",
        "q_\nproj",
        "a" * 257,
    ],
)
def test_pattern_that_may_take_long_or_is_invalid_is_refused_with_a_reason(pattern: str) -> None:
    problem = pattern_problem(pattern)
    assert problem is not None
    assert len(problem) < 1000


@pytest.mark.parametrize("pattern", [".*a.*a.*a.*a.*b", "(a|a)" * 30, "a?" * 40, "[ab.]*" * 8])
def test_pattern_with_too_many_ways_to_match_exceeds_the_limit(pattern: str) -> None:
    assert pattern_problem(pattern) is None
    assert ModulePatterns({pattern: 8}).attempts(["layers.0." + "a" * 60]) > MAX_ATTEMPTS


def test_many_patterns_for_many_modules_exceed_the_limit() -> None:
    patterns = ModulePatterns({f"layers.{layer}.mlp.experts.0.down_proj": 8 for layer in range(400)})
    assert patterns.attempts([f"layers.{layer}.mlp.experts.0.down_proj" for layer in range(5000)]) > MAX_ATTEMPTS


@given(st.text("ab01.\\d*+?()|[]{},^$-w:", max_size=12), st.text("ab01.", min_size=1, max_size=12))
@settings(max_examples=500, deadline=None)
def test_accepted_pattern_matches_as_in_python(pattern: str, module: str) -> None:
    if pattern_problem(pattern) is None:
        expected = re.match(rf"(.*\.)?({pattern})$", module) is not None
        assert (ModulePatterns({pattern: 8}).value_of(module) is not None) == expected
