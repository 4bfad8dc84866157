"""Configurations for classifiers, in a folder of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_lora_router.config import Loaded, load

Load = Callable[[str], Loaded]

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
    """Loads a configuration; what it leaves out of base, default and categories is added."""

    def write_and_load(text: str) -> Loaded:
        file = tmp_path / "config.yaml"
        file.write_text(f"{text}\n{REST}{'' if 'categories:' in text else CATEGORIES}", "utf-8")
        return load(file)

    return write_and_load
