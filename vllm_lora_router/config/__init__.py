"""What config.yaml may say, and reading it."""

from vllm_lora_router.config.loader import DEFAULT_FILE, Loaded, load
from vllm_lora_router.config.positions import ConfigError, Problem
from vllm_lora_router.config.schema import Config

__all__ = ["DEFAULT_FILE", "Config", "ConfigError", "Loaded", "Problem", "load"]
