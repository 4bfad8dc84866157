"""Selection of the plugins that vLLM loads: the router's, and those that it would load without the router."""

import os
from importlib.metadata import distributions, entry_points

ENDPOINT_GROUP = "vllm.endpoint_plugins"
PLUGIN = "lora_router"


class PluginError(RuntimeError):
    """The router's endpoint plugin is not installed or cannot be loaded."""


def check_plugin() -> None:
    """Load the router's plugin. vLLM would log an error of the plugin and serve without routing.

    Raises:
        PluginError: the plugin is not installed or cannot be loaded.
    """
    entries = list(entry_points(group=ENDPOINT_GROUP, name=PLUGIN))
    if not entries:
        raise PluginError(
            f"entry point {PLUGIN!r} is missing in {ENDPOINT_GROUP}: install the package (pip install vllm-lora-router)"
        )
    try:
        entries[0].load()()
    except Exception as error:
        raise PluginError(f"plugin {entries[0].value} cannot be loaded: {type(error).__name__}: {error}") from error


def plugin_names() -> list[str]:
    """Return the plugins for `VLLM_PLUGINS`, which disables all plugins that it does not name.

    These are the plugins that the variable names already, or else all installed plugins except endpoint plugins, which
    vLLM loads only by name; and the router's.
    """
    if (value := os.environ.get("VLLM_PLUGINS")) is not None:
        names = [name for name in value.split(",") if name]
    else:
        entries = [entry for distribution in distributions() for entry in distribution.entry_points]
        names = [entry.name for entry in entries if entry.group.startswith("vllm.") and entry.group != ENDPOINT_GROUP]
    return list(dict.fromkeys([*names, PLUGIN]))
