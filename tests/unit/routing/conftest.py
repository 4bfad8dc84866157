"""Routers with keyword rules, which need no model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_lora_router.config import LoadedConfig, load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router

Route = Callable[..., Router]

CONFIG = """\
model_config:
  base: {reasoning_family: qwen3, loras: [{name: technical-lora}, {name: medical-lora}, {name: legal-lora}]}
  other: {loras: [{name: other-lora}]}
default_model: base
keyword_rules:
  - {category: technical, keywords: [Python]}
  - {category: medical, keywords: [fever]}
  - {category: legal, keywords: [law]}
categories:
  - name: technical
    system_prompt: You are an engineer.
    model_scores:
      - {model: base, lora_name: legal-lora, score: 0.2}
      - {model: other, lora_name: other-lora, score: 1.0}
      - {model: base, lora_name: technical-lora, score: 0.9, use_reasoning: true}
      - {model: base, score: 0.5, use_reasoning: false}
  - name: medical
    system_prompt: You are a doctor.
    system_prompt_enabled: false
    model_scores:
      - {model: base, lora_name: medical-lora, score: 0.7}
      - {model: base, lora_name: legal-lora, score: 0.7}
  - name: legal
    system_prompt: You are a lawyer.
    system_prompt_mode: replace
    model_scores: [{model: other, lora_name: other-lora}]
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[str], LoadedConfig]:
    def write_and_load(text: str) -> LoadedConfig:
        file = tmp_path / "config.yaml"
        file.write_text(text, "utf-8")
        return load(file)

    return write_and_load


@pytest.fixture
def router(loaded: Callable[[str], LoadedConfig]) -> Route:
    """Build a router from the configuration above, with replaced parts and added lines."""

    def build(*replacements: tuple[str, str], more: str = "") -> Router:
        text = CONFIG
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        configuration = loaded(text + more)
        return Router.build(configuration, served_base(configuration, ["acme/base"]))

    return build
