"""README tells the truth about the configuration."""

import re
from pathlib import Path

import yaml

from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.config import Config, load
from vllm_lora_router.config.schema import Classifier, McpCategoryModel, RouterSettings
from vllm_lora_router.config.semantic_router_keys import NOT_BUILT
from vllm_lora_router.config.yaml_document import dotted
from vllm_lora_router.observability.response_headers import NAMES
from vllm_lora_router.server.vllm.releases import TESTED

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = Path(__file__).parents[2] / "config"
BLOCKS = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def test_the_example_loads(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(BLOCKS[0])
    assert [category.name for category in load(file).config.categories] == ["legal", "support"]


def test_the_defaults_of_router_are_the_defaults() -> None:
    said = yaml.safe_load(BLOCKS[1])["router"]
    assert RouterSettings.model_validate(said) == RouterSettings()
    assert set(said) == set(RouterSettings.model_fields)


def test_the_sources_are_sources() -> None:
    (block,) = (block for block in BLOCKS if "immutable" in block)
    router = RouterSettings.model_validate(yaml.safe_load(block)["router"])
    sources = [Source.parse(source.path, source.immutable) for source in router.adapters.sources]
    assert [(str(source), source.by_tenant, source.immutable) for source in sources] == [
        ("/adapters/{name}", False, False),
        ("/tenants/{tenant}/{name}", True, False),
        ("/store/{name}/current", False, True),
    ]


def test_the_tool_is_a_tool_and_every_key_of_one_is_named() -> None:
    (block,) = (block for block in BLOCKS if "mcp_category_model" in block)
    tool = Classifier.model_validate(yaml.safe_load(block)["classifier"]).mcp_category_model
    assert tool.enabled and (EXAMPLES / tool.args[0]).is_file()
    (row,) = (line for line in README.splitlines() if line.startswith("| `classifier.mcp_category_model` |"))
    assert [name for name in McpCategoryModel.model_fields if f"`{name}`" not in row] == []


def test_every_key_at_the_top_is_named() -> None:
    for name, field in Config.model_fields.items():
        assert f"`{field.alias or name}" in README or f"`{name}[]`" in README or f"`{name}." in README, name


def test_what_is_not_built_is_listed() -> None:
    for pattern, _, _ in NOT_BUILT:
        path = tuple(part for part in pattern if part is not None)
        if path not in (("router", "text", "take"),):
            assert dotted(path).replace("categories.", "categories[].") in README, path


def test_every_header_and_release_is_named() -> None:
    assert [name for name in NAMES if f"`{name}`" not in README] == []
    assert [release for release in TESTED if release not in README] == []
