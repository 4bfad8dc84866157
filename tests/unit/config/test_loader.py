"""Problems of a configuration, with their place and the nearest valid name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Configs


def test_an_unknown_key_is_reported_with_its_line_and_the_nearest_valid_key(configs: Configs) -> None:
    text = configs.good + "router:\n  deadline: 20\n  text:\n    window: 2\n"
    assert configs.problems(text) == [
        "22:3: router.deadline: unknown key; did you mean 'deadline_ms'?",
        "24:5: router.text.window: unknown key; did you mean 'windows'?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("default_model", "default_modell", "6:1: default_modell: unknown key; did you mean 'default_model'?"),
        ("    loras:", "    lora:", "3:5: model_config.base.lora: unknown key; did you mean 'loras'?"),
        (
            "lora_name: technical-lora",
            "lora_nam: technical-lora",
            "11:9: categories[0].model_scores[0].lora_nam: unknown key; did you mean 'lora_name'?",
        ),
        (
            "    keywords: [Python]",
            "    keyword: [Python]",
            "18:5: keyword_rules[0].keyword: unknown key; did you mean",
        ),
        ("keyword_rules", "keyword rules", "16:1: \"keyword rules\": unknown key; did you mean 'keyword_rules'?"),
        (
            "      - name: medical-lora",
            "      - Name: medical-lora",
            "5:9: model_config.base.loras[1].Name: unknown key",
        ),
    ],
)
def test_a_misspelt_key_in_any_block_names_the_nearest_valid_key(
    configs: Configs, old: str, new: str, problem: str
) -> None:
    assert any(line.startswith(problem) for line in configs.problems(configs.changed((old, new))))


def test_an_unknown_key_without_a_similar_one_has_no_suggestion(configs: Configs) -> None:
    assert configs.problems(configs.good + "zzz: 1\n") == ["21:1: zzz: unknown key"]


def test_the_python_name_of_model_config_is_an_unknown_key(configs: Configs) -> None:
    assert "1:1: bases: unknown key" in configs.problems(configs.changed(("model_config:", "bases:")))


def test_an_undeclared_adapter_is_reported_with_the_nearest_declared_one(configs: Configs) -> None:
    text = configs.changed(("        lora_name: medical-lora", "        lora_name: medcal-lora"))
    assert configs.problems(text) == [
        "15:20: categories[1].model_scores[0].lora_name: 'medcal-lora' is not declared under model_config.base.loras; "
        "did you mean 'medical-lora'?"
    ]


def test_adapters_of_the_command_line_are_declared(configs: Configs) -> None:
    text = configs.changed(("        lora_name: medical-lora", "        lora_name: from-outside"))
    assert len(configs.problems(text)) == 1
    assert configs.load(text, adapters=["from-outside"]).config.categories[1].model_scores[0].lora_name == (
        "from-outside"
    )
    assert "did you mean 'from-outsider'?" in configs.problems(text, adapters=["from-outsider"])[0]


def test_an_adapter_of_another_base_is_not_declared(configs: Configs) -> None:
    text = configs.changed(
        ("default_model", "  other:\n    loras: [{name: elsewhere}]\ndefault_model"),
        ("        lora_name: medical-lora", "        lora_name: elsewhere"),
    )
    assert configs.problems(text) == [
        "17:20: categories[1].model_scores[0].lora_name: 'elsewhere' is not declared under model_config.base.loras"
    ]


def test_duplicate_categories_are_an_error_and_names_are_case_sensitive(configs: Configs) -> None:
    assert "12:11: categories[1].name: duplicate category 'technical'; the first one is in line 8" in (
        configs.problems(configs.changed(("  - name: medical\n", "  - name: technical\n")))
    )
    renamed = ("  - name: medical\n", "  - name: Technical\n"), ("category: medical", "category: Technical")
    assert len(configs.load(configs.changed(*renamed)).config.categories) == 2


def test_duplicate_adapters_are_an_error_even_under_two_bases(configs: Configs) -> None:
    text = configs.changed(("default_model", "  other:\n    loras: [{name: medical-lora}]\ndefault_model"))
    assert configs.problems(text) == [
        "7:20: model_config.other.loras[0].name: duplicate adapter 'medical-lora'; the first one is in line 5"
    ]


def test_a_label_of_two_categories_is_an_error_and_case_is_ignored(configs: Configs) -> None:
    text = configs.changed(
        ("  - name: technical\n", "  - name: technical\n    mmlu_categories: [physics, Health]\n"),
        ("  - name: medical\n", "  - name: medical\n    mmlu_categories: [health]\n"),
    )
    assert configs.problems(text) == [
        "14:23: categories[1].mmlu_categories[0]: duplicate label 'health'; the first one is in line 9"
    ]


def test_a_rule_of_an_unknown_category_names_the_nearest_category(configs: Configs) -> None:
    text = configs.changed(("  - category: medical", "  - category: medicla")) + (
        "embedding_rules: [{category: Technical, candidates: [x]}]\n"
        "classifier:\n  category_model: {fallback_category: general}\n"
    )
    assert configs.problems(text) == [
        "19:15: keyword_rules[1].category: 'medicla' is not a category of this file; did you mean 'medical'?",
        "21:30: embedding_rules[0].category: 'Technical' is not a category of this file; did you mean 'technical'?",
        "23:39: classifier.category_model.fallback_category: 'general' is not a category of this file",
    ]


def test_an_undeclared_model_is_an_error(configs: Configs) -> None:
    text = configs.changed(
        ("default_model: base", "default_model: bsae"), ("      - model: base", "      - model: bass")
    )
    problems = configs.problems(text)
    assert "6:16: default_model: 'bsae' is neither a base under model_config nor an adapter; did you mean 'base'?" in (
        problems
    )
    assert (
        "10:16: categories[0].model_scores[0].model: 'bass' is not declared under model_config; did you mean 'base'?"
        in (problems)
    )


def test_default_model_may_be_an_adapter_of_the_file_or_the_command_line(configs: Configs) -> None:
    for name in ("medical-lora", "from-outside"):
        text = configs.changed(("default_model: base", f"default_model: {name}"))
        assert configs.load(text, adapters=["from-outside"]).config.default_model == name


def test_the_auto_name_must_not_be_the_name_of_a_model(configs: Configs) -> None:
    for name in ("base", "medical-lora"):
        assert configs.problems(f"{configs.good}auto_model_name: {name}\n") == [
            f"21:18: auto_model_name: '{name}' is also the name of a model; clients could not request that model"
        ]


def test_an_adapter_must_not_have_the_name_of_a_base(configs: Configs) -> None:
    text = configs.changed(("      - name: medical-lora", "      - name: base"))
    assert "5:15: model_config.base.loras[1].name: 'base' is also the name of a base under model_config" in (
        configs.problems(text)
    )


@pytest.mark.parametrize("value", ["1.01", "-0.1", "60", ".nan", ".inf", "-.inf", "high", "true", "[0.5]", "~"])
@pytest.mark.parametrize(
    ("path", "yaml"),
    [
        ("classifier.category_model.threshold", "classifier: {category_model: {threshold: VALUE}}"),
        ("embedding_rules[0].threshold", "embedding_rules: [{category: medical, candidates: [x], threshold: VALUE}]"),
    ],
)
def test_a_threshold_outside_0_to_1_is_an_error(configs: Configs, value: str, path: str, yaml: str) -> None:
    (problem,) = configs.problems(f"{configs.good}{yaml.replace('VALUE', value)}\n")
    assert problem.startswith(f"21:{yaml.index('VALUE') + 1}: {path}: ")


@pytest.mark.parametrize("value", ["0", "1", "0.0", "0.45"])
def test_a_threshold_of_0_or_1_is_valid(configs: Configs, value: str) -> None:
    text = f"{configs.good}classifier: {{category_model: {{threshold: {value}}}}}\n"
    assert configs.load(text).config.classifier.category_model.threshold == float(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no", "must be text, but `no` is a truth value in YAML; put it in quotes"),
        ("1", "must be text, but `1` is a number in YAML; put it in quotes"),
        ("1.5", "must be text, but `1.5` is a number in YAML; put it in quotes"),
        ("''", "string should have at least 1 character (got '')"),
        ("[a]", "input should be a valid string"),
    ],
)
def test_a_name_that_yaml_does_not_read_as_text_must_be_quoted(configs: Configs, value: str, message: str) -> None:
    problems = configs.problems(configs.changed(("  - name: medical\n", f"  - name: {value}\n")))
    assert f"12:11: categories[1].name: {message}" in problems


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("        lora_name: technical-lora", "        score: '1.0'", "11:16: categories[0].model_scores[0].score: "),
        ("        lora_name: technical-lora", "        score: -1", "11:16: categories[0].model_scores[0].score: "),
        (
            "    keywords: [Python]",
            "    keywords: Python",
            "18:15: keyword_rules[0].keywords: input should be a valid list",
        ),
        ("    keywords: [Python]", "    keywords: []", "18:15: keyword_rules[0].keywords: list should have at least 1"),
        ("    keywords: [Python]", "    keywords: [Python, 3]", "18:24: keyword_rules[0].keywords[1]: must be text"),
        (
            "    keywords: [Python]",
            "    operator: XOR",
            "18:15: keyword_rules[0].operator: 'XOR' is not one of 'AND', ",
        ),
        (
            "        lora_name: technical-lora",
            "        use_reasoning: 'yes'",
            "11:24: categories[0].model_scores[0].use_reasoning: input should be a valid boolean",
        ),
        (
            "        lora_name: technical-lora",
            "        reasoning_effort: hgih",
            "11:27: categories[0].model_scores[0].reasoning_effort: 'hgih' is not one of",
        ),
        (
            "    loras:\n",
            "    reasoning_family: 3\n    loras:\n",
            "3:23: model_config.base.reasoning_family: must be text",
        ),
        ("default_model: base\n", "", "1:1: needs the key 'default_model'"),
        ("  - name: technical\n    model_scores", "  - model_scores", "8:5: categories[0]: needs the key 'name'"),
    ],
)
def test_a_value_of_the_wrong_type_is_reported_at_its_place(configs: Configs, old: str, new: str, problem: str) -> None:
    assert any(line.startswith(problem) for line in configs.problems(configs.changed((old, new))))


def test_an_empty_block_is_reported(configs: Configs) -> None:
    assert configs.problems(configs.good + "router:\n") == ["21:8: router: must be a mapping of keys (got None)"]
    assert configs.problems(configs.good + "reasoning_families: [qwen3]\n") == [
        "21:21: reasoning_families: must be a mapping of keys"
    ]


def test_an_embedding_rule_without_examples_is_an_error(configs: Configs) -> None:
    (problem,) = configs.problems(configs.good + "embedding_rules:\n  - category: medical\n")
    assert problem.startswith("22:5: embedding_rules[0]: needs `candidates` (or `keywords`)")


def test_feedback_scale_needs_a_minimum_below_its_maximum(configs: Configs) -> None:
    config = configs.load(f"{configs.good}router: {{feedback: {{min: -1, max: 5}}}}\n").config
    assert (config.router.feedback.min, config.router.feedback.max) == (-1, 5)
    (problem,) = configs.problems(f"{configs.good}router: {{feedback: {{min: 1}}}}\n")
    assert "router.feedback: min (1) must be below max (1)" in problem
    (problem,) = configs.problems(f"{configs.good}router: {{feedback: {{max: .inf}}}}\n")
    assert "router.feedback.max" in problem


def test_invalid_values_of_the_router_block_are_errors(configs: Configs) -> None:
    text = configs.good + (
        "router:\n  methods: [keyword, keyword]\n  text:\n    drop: ['(']\n  on_error: refuse\n  deadline_ms: 0\n"
    )
    problems = configs.problems(text)
    assert problems[0].startswith("22:12: router.methods: contains a method twice")
    assert problems[1].startswith("24:11: router.text.drop: '(' is not a regular expression in RE2 syntax: ")
    assert problems[2].startswith("25:13: router.on_error: 'refuse' is not one of 'serve' or 'reject'")
    assert problems[3].startswith("26:16: router.deadline_ms: ")
    assert len(problems) == 4


def test_a_misspelt_method_names_the_nearest_method(configs: Configs) -> None:
    assert configs.problems(configs.good + "router: {methods: [embeddings]}\n") == [
        "21:20: router.methods[0]: 'embeddings' is not one of 'keyword', 'embedding', 'domain' or 'mcp'; "
        "did you mean 'embedding'?"
    ]


MANY_PROBLEMS = """\
model_config:
  base:
    loras:
      - name: medical-lora
      - name: medical-lora
default_model: nobody
categories:
  - name: no
    model_scores: []
  - name: medical
    sytem_prompt: x
    examples: [x]
    model_scores:
      - model: base
        lora_name: medcal-lora
keyword_rules:
  - category: legal
    keywords: []
embedding_rules:
  - category: medical
    candidates: [x]
    threshold: 1.5
router:
  mode: observing
"""


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(configs: Configs) -> None:
    places = [re.sub(r"^(\S+: \S+): .*$", r"\1", problem) for problem in configs.problems(MANY_PROBLEMS)]
    assert places == [
        "5:15: model_config.base.loras[1].name",
        "6:16: default_model",
        "8:11: categories[0].name",
        "9:19: categories[0].model_scores",
        "11:5: categories[1].sytem_prompt",
        "12:5: categories[1].examples",
        "15:20: categories[1].model_scores[0].lora_name",
        "17:15: keyword_rules[0].category",
        "18:15: keyword_rules[0].keywords",
        "22:16: embedding_rules[0].threshold",
        "24:9: router.mode",
    ]


@pytest.mark.parametrize("name", ["Größe/量", "a.b[0]", "🩺", "x" * 256, "%41", '"'])
def test_a_category_may_have_any_name(configs: Configs, name: str) -> None:
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    text = configs.changed(
        ("  - name: medical\n", f"  - name: {quoted}\n"), ("category: medical", f"category: {quoted}")
    )
    config = configs.load(text).config
    assert (config.categories[1].name, config.keyword_rules[1].category) == (name, name)


def test_a_name_of_more_than_256_characters_is_an_error(configs: Configs) -> None:
    long = "x" * 257
    text = configs.changed(("  - name: medical\n", f"  - name: {long}\n"), ("category: medical", f"category: {long}"))
    assert configs.problems(text)[0].startswith("12:11: categories[1].name: string should have at most 256 characters")


def test_an_ab_test_needs_a_weight_and_valid_keys(configs: Configs) -> None:
    entry = "        lora_name: medical-lora"
    text = configs.changed(
        (entry, f"{entry}\n        score: 0"), ("  - name: medical\n", "  - name: medical\n    selection: weighted\n")
    )
    (problem,) = configs.problems(text)
    assert problem.endswith("selection is weighted, but no entry of model_scores has a score above 0")
    for key in ("users", "header:", "header:x y", "metadata"):
        (problem,) = configs.problems(f"{configs.good}router: {{ab: {{key: ['{key}']}}}}\n")
        assert "router.ab.key[0]" in problem
    assert len(configs.problems(f"{configs.good}router: {{ab: {{key: []}}}}\n")) == 1


@pytest.mark.parametrize("line", ["mode: off", "log: off", "adapters: {snapshot: off}", "mode: 'off'"])
def test_off_is_accepted_without_quotes(configs: Configs, line: str) -> None:
    configs.load(f"{configs.good}router: {{{line}}}\n")


def test_table_of_api_keys_needs_a_tenant_header(configs: Configs) -> None:
    (problem,) = configs.problems(f"{configs.good}router: {{tenants: {{keys_env: KEYS}}, tenant: null}}\n")
    assert "router.tenants: the table of API keys needs the tenant of each request" in problem
    for valid in ("tenants: {keys_env: KEYS}", "tenants: null, tenant: null"):
        configs.load(f"{configs.good}router: {{{valid}}}\n")


def test_isolated_without_a_tenant_header_is_an_error(configs: Configs) -> None:
    text = f"{configs.good}router:\n  tenant: null\n  tenant_cache: isolated\n"
    assert configs.problems(text) == [
        "23:17: router.tenant_cache: isolated needs the tenant of each request, but router.tenant is null; set it to "
        'the header with the tenant, such as "header:x-tenant"'
    ]
    for valid in ("tenant: null", "tenant: null, tenant_cache: shared", "tenant_cache: isolated"):
        configs.load(f"{configs.good}router: {{{valid}}}\n")
    (problem,) = configs.problems(f"{configs.good}router: {{tenant_cache: isolate}}\n")
    assert problem.endswith("'isolate' is not one of 'shared' or 'isolated'; did you mean 'isolated'?")


def test_top_level_keys_with_the_prefix_x_are_ignored_and_may_have_anchors(configs: Configs) -> None:
    text = "x-scores: &scores\n  - {model: base, lora_name: medical-lora}\n" + configs.changed(
        ("    model_scores:\n      - model: base\n        lora_name: medical-lora\n", "    model_scores: *scores\n")
    )
    loaded = configs.load(text)
    assert loaded.config.categories[1].model_scores[0].lora_name == "medical-lora" and loaded.ignored == ()
    assert configs.problems(f"{configs.good}router: {{x-a: 1}}\n") == ["21:10: router.x-a: unknown key"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("router: {tenant: 'header:" + "x" * 300 + "'}", "string should have at most 256 characters"),
        ("router: {adapters: {sources: [" + "/a, " * 101 + "]}}", "should have at most 100 items"),
        ("router: {admin_key_env: 'A=B'}", "string should match pattern"),
        ("classifier: {mcp_category_model: {url: 'http://x:99999'}}", "is not a URL: Port out of range"),
        ("classifier: {mcp_category_model: {url: 'http://[x'}}", "is not a URL: "),
        ("classifier: {mcp_category_model: {url: 'http://:80'}}", "is not a URL: it needs a host"),
    ],
)
def test_a_value_beyond_a_limit_is_an_error(configs: Configs, line: str, problem: str) -> None:
    (reported,) = configs.problems(f"{configs.good}{line}\n")
    assert problem in reported and len(reported) < 500


def test_the_number_of_rules_is_limited(configs: Configs) -> None:
    rules = "  - {category: medical, keywords: [x]}\n" * 10_001
    (reported,) = configs.problems(configs.good + rules)
    assert "16:1" in reported or "17:3" in reported
    assert "keyword_rules: list should have at most 10000 items" in reported
