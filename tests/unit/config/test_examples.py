"""The example configurations in config/, including the unchanged one of the LoRA routing guide."""

from pathlib import Path

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.methods import configured_methods, methods_by_category
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.config.warnings import config_warnings

FOLDER = Path(__file__).parents[3] / "config"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_loads_and_each_of_its_methods_can_choose_a_category(file: Path) -> None:
    loaded = load(file)
    assert loaded.file == file
    configured = {method for method, is_configured in configured_methods(loaded.config).items() if is_configured}
    used = {method for methods in methods_by_category(loaded.config).values() for method in methods}
    assert configured
    assert used == configured


@pytest.mark.parametrize("file", [file for file in EXAMPLES if file.name != "guide.yaml"], ids=lambda file: file.name)
def test_an_example_has_no_warnings(file: Path) -> None:
    loaded = load(file)
    assert [warning.text for warning in config_warnings(loaded, served_base(loaded))] == []


def test_there_is_an_example_for_each_method_and_feature() -> None:
    methods = {"keyword", "embedding", "examples", "domain", "tenants", "rules"}
    assert {file.stem for file in EXAMPLES} >= {*methods, "combined", "adapters", "ab", "guide"}


def test_the_guide_configuration_keeps_its_meaning() -> None:
    loaded = load(FOLDER / "guide.yaml", adapters=["technical-lora", "medical-lora", "legal-lora"])
    base = served_base(loaded, ["meta-llama/Llama-2-7b-hf"])
    assert (base.alias, base.served_name) == ("llama2-7b", "meta-llama/Llama-2-7b-hf")
    lora_names = {category.name: category.model_scores[0].lora_name for category in loaded.config.categories}
    assert lora_names == {
        "technical": "technical-lora",
        "medical": "medical-lora",
        "legal": "legal-lora",
        "general": None,
    }
    model = loaded.config.classifier.category_model
    assert (model.threshold, model.use_cpu, model.use_modernbert) == (0.6, True, True)
    assert loaded.ignored == ("vllm_endpoints", "model_config.llama2-7b.preferred_endpoints")


def test_the_guide_configuration_gets_warnings_about_its_reasoning_family_and_use_cpu() -> None:
    loaded = load(FOLDER / "guide.yaml")
    base = served_base(loaded, ["meta-llama/Llama-2-7b-hf"])
    texts = [warning.text for warning in config_warnings(loaded, base)]
    assert texts[0] == "keys without effect in this router: vllm_endpoints, model_config.llama2-7b.preferred_endpoints"
    assert texts[1] == "'llama2-7b' in the configuration is the served model 'meta-llama/Llama-2-7b-hf'"
    assert texts[2].startswith("reasoning_family 'llama2' is neither built in nor defined")
    assert texts[3].startswith("category_model.use_cpu is true")
    assert len(texts) == 4
