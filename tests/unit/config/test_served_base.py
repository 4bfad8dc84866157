"""The base model of the server under model_config, and its reasoning settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.config import ConfigError
from vllm_lora_router.types import Reasoning

if TYPE_CHECKING:
    from .conftest import Configs

TWO_BASES = """\
model_config:
  llama2-7b: {reasoning_family: qwen3}
  qwen3-8b: {}
default_model: qwen3-8b
categories:
  - {name: general, model_scores: [{model: llama2-7b}, {model: qwen3-8b}]}
"""


@pytest.mark.parametrize(
    "served", [["meta-llama/Llama-2-7b-hf"], ["x"], ["/models/llama/"], ["first", "second"]], ids=lambda names: names[0]
)
def test_a_single_key_is_the_base_for_every_served_name(configs: Configs, served: list[str]) -> None:
    base = configs.base(configs.good, served)
    assert (base.alias, base.served_name) == ("base", served[0])


@pytest.mark.parametrize(
    ("served", "alias"),
    [
        (["qwen3-8b"], "qwen3-8b"),
        (["llama2-7b"], "llama2-7b"),
        (["meta-llama/llama2-7b"], "llama2-7b"),
        (["/models/llama2-7b/"], "llama2-7b"),
        (["chat", "qwen3-8b"], "qwen3-8b"),
        (["x/llama2-7b", "qwen3-8b"], "qwen3-8b"),
    ],
)
def test_the_key_that_equals_the_served_name_or_its_last_path_part_is_the_base(
    configs: Configs, served: list[str], alias: str
) -> None:
    base = configs.base(TWO_BASES, served)
    assert (base.alias, base.served_name) == (alias, served[0])


def test_several_keys_without_the_served_name_are_an_error_with_a_remedy(configs: Configs) -> None:
    with pytest.raises(ConfigError) as error:
        configs.base(TWO_BASES, ["meta-llama/Llama-2-7b-hf"])
    message = str(error.value)
    assert "none of 'llama2-7b', 'qwen3-8b' is the served model 'meta-llama/Llama-2-7b-hf'" in message
    assert "rename a key to 'Llama-2-7b-hf', or serve with --served-model-name" in message


def test_without_a_server_the_default_model_determines_the_base(configs: Configs) -> None:
    assert configs.base(TWO_BASES).alias == "qwen3-8b"
    assert configs.base(configs.changed(("default_model: base", "default_model: medical-lora"))).alias == "base"


REASONING = """\
model_config:
  base: FAMILY
default_model: base
categories:
  - {name: on, model_scores: [{model: base, use_reasoning: true, reasoning_effort: high}]}
  - {name: off, model_scores: [{model: base, use_reasoning: false, reasoning_effort: high}]}
  - {name: unset, model_scores: [{model: base, reasoning_effort: high}]}
  - {name: default, model_scores: [{model: base, use_reasoning: true}]}
"""


def reasoning_of(configs: Configs, family: str, more: str = "") -> list[Reasoning | None]:
    text = REASONING.replace("FAMILY", f"{{reasoning_family: {family}}}" if family else "{}") + more
    text = text.replace("name: on", 'name: "on"').replace("name: off", 'name: "off"')
    loaded, base = configs.load(text), configs.base(text)
    return [base.reasoning(category.model_scores[0]) for category in loaded.config.categories]


@pytest.mark.parametrize(("family", "parameter"), [("qwen3", "enable_thinking"), ("deepseek", "thinking")])
def test_a_family_with_a_template_switch_gets_true_or_false(configs: Configs, family: str, parameter: str) -> None:
    assert reasoning_of(configs, family) == [
        Reasoning(True, template_kwargs={parameter: True}),
        Reasoning(False, template_kwargs={parameter: False}),
        None,
        Reasoning(True, template_kwargs={parameter: True}),
    ]


@pytest.mark.parametrize("family", ["gpt-oss", "gpt"])
def test_a_family_with_efforts_gets_the_effort_and_is_never_switched_off(configs: Configs, family: str) -> None:
    assert reasoning_of(configs, family) == [
        Reasoning(True, effort="high"),
        None,
        None,
        Reasoning(True, effort="medium"),
    ]


def test_default_reasoning_effort_sets_the_default_effort(configs: Configs) -> None:
    assert reasoning_of(configs, "gpt-oss", "default_reasoning_effort: low\n")[3] == Reasoning(True, effort="low")


def test_a_defined_family_works_and_may_replace_a_built_in_one(configs: Configs) -> None:
    definition = "reasoning_families:\n  NAME: {type: chat_template_kwargs, parameter: think_hard}\n"
    for name in ("mine", "gpt-oss"):
        assert reasoning_of(configs, name, definition.replace("NAME", name))[:2] == [
            Reasoning(True, template_kwargs={"think_hard": True}),
            Reasoning(False, template_kwargs={"think_hard": False}),
        ]


@pytest.mark.parametrize("family", ["", "llama2"])
def test_no_reasoning_is_written_for_an_unknown_family(configs: Configs, family: str) -> None:
    assert reasoning_of(configs, family) == [None] * 4


def test_a_relative_path_is_tried_against_the_configuration_folder_first(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = configs.load(configs.good)
    elsewhere = configs.folder / "elsewhere"
    (elsewhere / "model").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    assert loaded.locate("model") == elsewhere / "model"
    (configs.folder / "model").mkdir()
    assert loaded.locate("model") == configs.folder / "model"
    assert loaded.locate(str(elsewhere / "model")) == elsewhere / "model"
    assert loaded.locate("nowhere") is None


def test_the_version_changes_with_any_byte_of_the_file(configs: Configs) -> None:
    first = configs.load(configs.good).version
    assert len(first) == 8
    assert configs.load(configs.good).version == first
    assert configs.load(configs.good + "# a comment\n").version != first
