"""What a user is told of a configuration that loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Configs


def test_a_configuration_that_says_all_it_means_gets_no_notice(configs: Configs) -> None:
    assert configs.notices(configs.good) == []


def test_ignored_keys_are_one_line_at_info(configs: Configs) -> None:
    assert configs.notices(configs.good + "tools: []\nvllm_endpoints: []\n") == [
        "INFO: keys that mean nothing here: tools, vllm_endpoints"
    ]


def test_an_alias_of_the_served_model_is_told(configs: Configs) -> None:
    assert configs.notices(configs.good, ["acme/tiny"]) == [
        "INFO: 'base' in the configuration is the served model 'acme/tiny'"
    ]


def test_an_unknown_reasoning_family_is_warned_of(configs: Configs) -> None:
    (said,) = configs.notices(configs.changed(("    loras:", "    reasoning_family: llama2\n    loras:")))
    assert said.startswith("WARNING: reasoning_family 'llama2' has no preset and no entry under reasoning_families")


def test_a_wish_for_reasoning_without_a_family_is_warned_of(configs: Configs) -> None:
    wish = ("        lora_name: medical-lora", "        lora_name: medical-lora\n        use_reasoning: true")
    assert configs.notices(configs.changed(wish)) == [
        "WARNING: model_config.base has no reasoning_family: use_reasoning is not written"
    ]
    family = ("    loras:", "    reasoning_family: qwen3\n    loras:")
    assert configs.notices(configs.changed(wish, family)) == []


def test_entries_for_other_bases_are_skipped_with_a_warning(configs: Configs) -> None:
    text = configs.changed(
        ("default_model", "  other: {}\ndefault_model"),
        ("      - model: base\n        lora_name: medical-lora", "      - model: other"),
    )
    assert configs.notices(text) == [
        "WARNING: this server is 'base'; model_scores for other bases are skipped: 'medical' (other)",
        "WARNING: category 'medical' has no entry for 'base': it takes default_model",
    ]


def test_a_score_that_does_nothing_is_warned_of(configs: Configs) -> None:
    entry = "        lora_name: technical-lora"
    text = configs.changed(
        (entry, f"{entry}\n        score: 0.3\n      - {{model: base, lora_name: medical-lora, score: 0.7}}")
    )
    assert configs.notices(text) == [
        "WARNING: category 'technical': medical-lora (0.7) takes every request; technical-lora (0.3) is only tried "
        "when it cannot be served (selection: weighted would draw by score)"
    ]


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("[embedding, domain, mcp]", "router.methods leaves keyword out"),
        ("[keyword, domain]", "router.methods leaves embedding out"),
    ],
)
def test_rules_of_a_method_that_is_left_out_are_warned_of(configs: Configs, methods: str, said: str) -> None:
    text = configs.good + f"embedding_rules: [{{category: medical, candidates: [x]}}]\nrouter: {{methods: {methods}}}\n"
    assert any(said in notice for notice in configs.notices(text))


def test_a_rule_that_its_category_does_not_allow_is_warned_of(configs: Configs) -> None:
    text = configs.changed(("  - name: medical\n", "  - name: medical\n    methods: [domain]\n"))
    assert configs.notices(text) == [
        "WARNING: keyword_rules[1] does nothing: the methods of 'medical' leave keyword out",
        "WARNING: no method can choose category 'medical'",
    ]


def test_a_domain_model_that_is_left_out_is_warned_of(configs: Configs) -> None:
    text = configs.good + "classifier: {category_model: {model_id: m}}\nrouter: {methods: [keyword]}\n"
    assert configs.notices(text) == [
        "WARNING: classifier.category_model does nothing: router.methods leaves domain out"
    ]


def test_a_category_that_no_method_can_choose_is_warned_of(configs: Configs) -> None:
    text = configs.changed(("  - category: medical\n    keywords: [fever]\n", ""))
    assert configs.notices(text) == ["WARNING: no method can choose category 'medical'"]
    assert configs.notices(text + "classifier: {category_model: {model_id: m}}\n") == []


def test_a_configuration_without_any_method_is_warned_of_once(configs: Configs) -> None:
    text = configs.good.partition("keyword_rules")[0]
    (said,) = configs.notices(text)
    assert said.startswith("WARNING: no method is configured: every request takes default_model; add keyword_rules")


def test_the_cost_of_use_cpu_is_told(configs: Configs) -> None:
    (said,) = configs.notices(configs.good + "classifier: {category_model: {model_id: m, use_cpu: true}}\n")
    assert said.startswith("INFO: category_model.use_cpu is true")
    assert configs.notices(configs.good + "classifier: {category_model: {use_cpu: true}}\n") == []


@pytest.mark.parametrize(
    ("router", "said"),
    [
        (
            "mode: off",
            "WARNING: router.mode is off: nothing is classified, every auto request takes default_model (base)",
        ),
        (
            "mode: observe",
            "WARNING: router.mode is observe: decisions are made, shown and recorded, and none is applied: every auto "
            "request takes default_model (base)",
        ),
        (
            "share: 0.1, ab: {salt: x}",
            "INFO: router.share is 0.1: the rest of the users takes default_model (base)",
        ),
    ],
)
def test_routing_that_is_not_in_force_for_all_is_told(configs: Configs, router: str, said: str) -> None:
    assert configs.notices(f"{configs.good}router: {{{router}}}\n") == [said]


def test_arms_that_anybody_could_tell_are_told_of(configs: Configs) -> None:
    entry = "        lora_name: medical-lora"
    text = configs.changed(
        (entry, f"{entry}\n      - {{model: base, score: 0.5}}"),
        ("  - name: medical\n", "  - name: medical\n    selection: weighted\n"),
    )
    assert configs.notices(text) == [
        "INFO: router.ab.salt is empty: whoever knows a user's id can tell its arm, and find it in the audit record"
    ]
    assert configs.notices(f"{text}router: {{ab: {{salt: x}}}}\n") == []
