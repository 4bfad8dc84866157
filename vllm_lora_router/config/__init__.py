"""Schema and loader of the configuration file."""

from vllm_lora_router.config.loader import CONFIG_VARIABLE, DEFAULT_FILE, LoadedConfig, configured_file, load
from vllm_lora_router.config.schema import Config
from vllm_lora_router.config.yaml_document import ConfigError, Problem

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_FILE",
    "Config",
    "ConfigError",
    "LoadedConfig",
    "Problem",
    "configured_file",
    "load",
]
