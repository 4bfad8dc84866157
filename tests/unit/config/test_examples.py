"""The configurations that come with the package, the guide's own among them."""

from pathlib import Path

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.config.warnings import methods_of, notices, ways_to

FOLDER = Path(__file__).parents[3] / "config"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_loads_and_every_method_it_configures_can_choose_something(file: Path) -> None:
    loaded = load(file)
    assert loaded.file == file
    configured = {method for method, on in methods_of(loaded.config).items() if on}
    used = {method for category in loaded.config.categories for method in ways_to(category, loaded.config)}
    assert configured
    assert used == configured


@pytest.mark.parametrize("file", [file for file in EXAMPLES if file.name != "guide.yaml"], ids=lambda file: file.name)
def test_an_example_of_ours_leaves_nothing_to_warn_of(file: Path) -> None:
    loaded = load(file)
    assert [one.text for one in notices(loaded, served_base(loaded))] == []


def test_there_is_an_example_for_each_method_one_for_all_and_for_what_else_there_is() -> None:
    methods = {"keyword", "embedding", "examples", "domain", "tenants", "rules"}
    assert {file.stem for file in EXAMPLES} >= {*methods, "combined", "adapters", "ab", "guide"}


def test_the_guide_means_here_what_it_says_there() -> None:
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


def test_the_guide_leaves_its_reasoning_family_and_its_use_of_the_cpu_to_be_said() -> None:
    loaded = load(FOLDER / "guide.yaml")
    said = [one.text for one in notices(loaded, served_base(loaded, ["meta-llama/Llama-2-7b-hf"]))]
    assert said[0] == "keys that mean nothing here: vllm_endpoints, model_config.llama2-7b.preferred_endpoints"
    assert said[1] == "'llama2-7b' in the configuration is the served model 'meta-llama/Llama-2-7b-hf'"
    assert said[2].startswith("reasoning_family 'llama2' has no preset")
    assert said[3].startswith("category_model.use_cpu is true")
    assert len(said) == 4
