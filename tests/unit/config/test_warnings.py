"""Warnings about valid configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Configs


def test_a_complete_configuration_has_no_warnings(configs: Configs) -> None:
    assert configs.warnings(configs.good) == []


def test_ignored_keys_are_listed_in_one_info_line(configs: Configs) -> None:
    assert configs.warnings(configs.good + "tools: []\nvllm_endpoints: []\n") == [
        "INFO: keys without effect in this router: tools, vllm_endpoints"
    ]


def test_an_alias_of_the_served_model_is_reported(configs: Configs) -> None:
    assert configs.warnings(configs.good, ["acme/tiny"]) == [
        "INFO: 'base' in the configuration is the served model 'acme/tiny'"
    ]


def test_an_unknown_reasoning_family_gets_a_warning(configs: Configs) -> None:
    (warning,) = configs.warnings(configs.changed(("    loras:", "    reasoning_family: llama2\n    loras:")))
    assert warning.startswith(
        "WARNING: reasoning_family 'llama2' is neither built in nor defined under reasoning_families"
    )


def test_use_reasoning_without_a_family_gets_a_warning(configs: Configs) -> None:
    use_reasoning = ("        lora_name: medical-lora", "        lora_name: medical-lora\n        use_reasoning: true")
    assert configs.warnings(configs.changed(use_reasoning)) == [
        "WARNING: model_config.base has no reasoning_family: use_reasoning is not written"
    ]
    family = ("    loras:", "    reasoning_family: qwen3\n    loras:")
    assert configs.warnings(configs.changed(use_reasoning, family)) == []


def test_entries_of_other_bases_are_ignored_with_a_warning(configs: Configs) -> None:
    text = configs.changed(
        ("default_model", "  other: {}\ndefault_model"),
        ("      - model: base\n        lora_name: medical-lora", "      - model: other"),
    )
    assert configs.warnings(text) == [
        "WARNING: this server serves 'base'; model_scores of other bases are ignored: 'medical' (other)",
        "WARNING: category 'medical' has no entry for 'base': default_model serves it",
    ]


def test_a_score_without_effect_gets_a_warning(configs: Configs) -> None:
    entry = "        lora_name: technical-lora"
    text = configs.changed(
        (entry, f"{entry}\n        score: 0.3\n      - {{model: base, lora_name: medical-lora, score: 0.7}}")
    )
    assert configs.warnings(text) == [
        "WARNING: category 'technical': medical-lora (0.7) serves every request; technical-lora (0.3) is only tried "
        "when it cannot be served (selection: weighted distributes users by score)"
    ]


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ("[embedding, domain, mcp]", "router.methods does not contain keyword"),
        ("[keyword, domain]", "router.methods does not contain embedding"),
    ],
)
def test_rules_of_a_method_outside_router_methods_get_a_warning(configs: Configs, methods: str, reason: str) -> None:
    text = configs.good + f"embedding_rules: [{{category: medical, candidates: [x]}}]\nrouter: {{methods: {methods}}}\n"
    assert any(reason in warning for warning in configs.warnings(text))


def test_a_rule_that_its_category_does_not_allow_gets_a_warning(configs: Configs) -> None:
    text = configs.changed(("  - name: medical\n", "  - name: medical\n    methods: [domain]\n"))
    assert configs.warnings(text) == [
        "WARNING: keyword_rules[1] has no effect: the methods of category 'medical' do not contain keyword",
        "WARNING: no method can choose category 'medical'",
    ]


def test_a_domain_model_outside_router_methods_gets_a_warning(configs: Configs) -> None:
    text = configs.good + "classifier: {category_model: {model_id: m}}\nrouter: {methods: [keyword]}\n"
    assert configs.warnings(text) == [
        "WARNING: classifier.category_model has no effect: router.methods does not contain domain"
    ]


def test_a_category_that_no_method_can_choose_gets_a_warning(configs: Configs) -> None:
    text = configs.changed(("  - category: medical\n    keywords: [fever]\n", ""))
    assert configs.warnings(text) == ["WARNING: no method can choose category 'medical'"]
    assert configs.warnings(text + "classifier: {category_model: {model_id: m}}\n") == []


def test_a_configuration_without_any_method_gets_one_warning(configs: Configs) -> None:
    text = configs.good.partition("keyword_rules")[0]
    (warning,) = configs.warnings(text)
    assert warning.startswith("WARNING: no method is configured: default_model serves every request; add keyword_rules")


def test_use_cpu_is_reported(configs: Configs) -> None:
    (warning,) = configs.warnings(configs.good + "classifier: {category_model: {model_id: m, use_cpu: true}}\n")
    assert warning.startswith("INFO: category_model.use_cpu is true")
    assert configs.warnings(configs.good + "classifier: {category_model: {use_cpu: true}}\n") == []


@pytest.mark.parametrize(
    ("router", "warning"),
    [
        (
            "mode: off",
            "WARNING: router.mode is off: requests are not classified; every auto request gets default_model (base)",
        ),
        (
            "mode: observe",
            "WARNING: router.mode is observe: decisions are made, shown in headers and recorded, but not applied; "
            "every auto request gets default_model (base)",
        ),
        (
            "share: 0.1, ab: {salt: x}",
            "INFO: router.share is 0.1: the requests of all other users get default_model (base)",
        ),
    ],
)
def test_settings_that_limit_routing_are_reported(configs: Configs, router: str, warning: str) -> None:
    assert configs.warnings(f"{configs.good}router: {{{router}}}\n") == [warning]


def test_an_ab_test_without_a_salt_is_reported(configs: Configs) -> None:
    entry = "        lora_name: medical-lora"
    text = configs.changed(
        (entry, f"{entry}\n      - {{model: base, score: 0.5}}"),
        ("  - name: medical\n", "  - name: medical\n    selection: weighted\n"),
    )
    (warning,) = configs.warnings(text)
    assert warning.startswith("INFO: router.ab.salt is empty: anyone who knows a user's id can compute its arm, and")
    assert warning.endswith("find it in the audit record")
    assert configs.warnings(f"{text}router: {{ab: {{salt: x}}}}\n") == []
