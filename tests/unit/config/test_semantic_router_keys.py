"""Keys of vllm-project/semantic-router that have no effect, and values that are not supported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.config.semantic_router_keys import IGNORED_KEYS, UNSUPPORTED_KEYS

if TYPE_CHECKING:
    from .conftest import Configs

UNSUPPORTED = [
    ("router: {text: {take: all}}", "text other than the last user message"),
]

DEFAULT_VALUES = [
    "router: {text: {take: last, windows: 3}}",
    "router: {admin_key_env: null}",
    "classifier: {mcp_category_model: {enabled: false}}",
    "classifier: {mcp_category_model: {enabled: false, transport_type: stdio, command: python, args: [server.py]}}",
    "classifier: {embedding_model: {head: null}}",
]


@pytest.mark.parametrize(("line", "feature"), UNSUPPORTED, ids=[line for line, _ in UNSUPPORTED])
def test_a_key_of_an_unsupported_feature_is_an_error(configs: Configs, line: str, feature: str) -> None:
    (problem,) = configs.problems(f"{configs.good}{line}\n")
    assert problem.startswith("21:")
    assert problem.endswith(f": {feature} is not supported; remove the key")


def test_every_unsupported_key_is_tested() -> None:
    assert {feature for _, feature, _ in UNSUPPORTED_KEYS} == {feature for _, feature in UNSUPPORTED}


@pytest.mark.parametrize("line", DEFAULT_VALUES)
def test_a_value_that_requests_the_default_behaviour_loads(configs: Configs, line: str) -> None:
    loaded = configs.load(f"{configs.good}{line}\n")
    assert loaded.ignored == ()


def test_default_values_of_a_category_load(configs: Configs) -> None:
    text = configs.changed(("  - name: medical\n", "  - name: medical\n    selection: highest\n    examples: []\n"))
    assert configs.load(text).config.categories[1].name == "medical"


def test_a_dropped_key_keeps_the_other_keys_of_its_block(configs: Configs) -> None:
    text = configs.good + "router: {mode: route, deadline_ms: 70, text: {take: last, windows: 3}}\n"
    router = configs.load(text).config.router
    assert (router.deadline_ms, router.text.windows) == (70, 3)
    assert configs.problems(configs.good + "router: {mode: route, deadlin_ms: 70}\n") == [
        "21:23: router.deadlin_ms: unknown key; did you mean 'deadline_ms'?"
    ]


def test_ignored_keys_load_and_are_listed(configs: Configs) -> None:
    text = configs.changed(
        ("    loras:\n", "    preferred_endpoints: [a]\n    pii_policy: {allow_by_default: true}\n    loras:\n"),
        ("  - name: medical\n", "  - name: medical\n    jailbreak_enabled: true\n    pii_threshold: 0.9\n"),
    )
    text += (
        "bert_model: {model_id: x}\nsemantic_cache: {enabled: false}\nprompt_guard: {}\ntools: []\nvllm_endpoints: 5\n"
    )
    text += "classifier: {pii_model: {model_id: x}, category_model: {threshold: 0.7}}\n"
    loaded = configs.load(text)
    assert set(loaded.ignored) == {
        "bert_model",
        "semantic_cache",
        "prompt_guard",
        "tools",
        "vllm_endpoints",
        "classifier.pii_model",
        "model_config.base.preferred_endpoints",
        "model_config.base.pii_policy",
        "categories[1].jailbreak_enabled",
        "categories[1].pii_threshold",
    }
    assert loaded.config.classifier.category_model.threshold == 0.7


@pytest.mark.parametrize(
    "pattern", [pattern for pattern in IGNORED_KEYS if len(pattern) == 1], ids=lambda pattern: pattern[0]
)
def test_each_ignored_block_loads_with_any_content(configs: Configs, pattern: tuple[str]) -> None:
    for value in ("{a: {b: [1, ~]}}", "[1]", "~", "text"):
        assert configs.load(f"{configs.good}{pattern[0]}: {value}\n").ignored == (pattern[0],)


def test_an_ignored_key_in_another_block_is_unknown(configs: Configs) -> None:
    text = configs.good + "router: {semantic_cache: {enabled: true}}\n"
    assert configs.problems(text) == ["21:10: router.semantic_cache: unknown key; did you mean 'tenant_cache'?"]
