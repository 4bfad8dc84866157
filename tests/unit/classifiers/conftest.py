"""Configurations for the tests of classifiers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_lora_router.config import LoadedConfig, load

Load = Callable[[str], LoadedConfig]

REST = """
model_config: {base: {loras: [{name: technical-lora}, {name: medical-lora}]}}
default_model: base
"""
CATEGORIES = """
categories:
  - {name: technical, description: Programming, model_scores: [{model: base, lora_name: technical-lora}]}
  - {name: medical, description: Health care, model_scores: [{model: base, lora_name: medical-lora}]}
  - {name: general, model_scores: [{model: base}]}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    """Load a configuration. The base model, the default model and the categories are added if they are missing."""

    def write_and_load(text: str) -> LoadedConfig:
        file = tmp_path / "config.yaml"
        file.write_text(f"{text}\n{REST}{'' if 'categories:' in text else CATEGORIES}", "utf-8")
        return load(file)

    return write_and_load
