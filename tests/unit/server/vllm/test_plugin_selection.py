"""The plugins that vLLM loads beside the router's."""

from importlib.metadata import EntryPoint

import pytest

from vllm_lora_router.server.vllm import plugin_selection
from vllm_lora_router.server.vllm.plugin_selection import PluginError, check_plugin, plugin_names


class Distribution:
    entry_points = (
        EntryPoint("theirs", "a:b", "vllm.general_plugins"),
        EntryPoint("platform", "a:b", "vllm.platform_plugins"),
        EntryPoint("other-routes", "a:b", "vllm.endpoint_plugins"),  # vLLM loads it only if it is named
        EntryPoint("lora_router", "a:b", "vllm.endpoint_plugins"),
        EntryPoint("unrelated", "a:b", "pytest11"),
    )


def test_plugins_that_load_without_the_router_still_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_selection, "distributions", lambda: [Distribution()])
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert plugin_names() == ["theirs", "platform", "lora_router"]
    monkeypatch.setenv("VLLM_PLUGINS", "only,these")
    assert plugin_names() == ["only", "these", "lora_router"]
    monkeypatch.setenv("VLLM_PLUGINS", "")
    assert plugin_names() == ["lora_router"]


def test_plugin_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("lora_router", "no.such.module:Plugin", "vllm.endpoint_plugins")
    monkeypatch.setattr(plugin_selection, "entry_points", lambda **_: [entry])
    with pytest.raises(PluginError, match=r"plugin no\.such\.module:Plugin cannot be loaded: ModuleNotFoundError"):
        check_plugin()
