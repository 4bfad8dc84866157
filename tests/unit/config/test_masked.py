"""What /v1/router/config shows: the configuration without its secrets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.config.redact import _mask, masked

if TYPE_CHECKING:
    from .conftest import Configs


def test_a_configuration_is_shown_under_the_keys_of_the_file(configs: Configs) -> None:
    shown = masked(configs.load(configs.good).config)
    assert shown["model_config"]["base"]["loras"][0]["name"] == "technical-lora"
    assert shown["router"]["share"] == 1
    assert "bases" not in shown
    json.dumps(shown)


PROMPT = "You are an expert.\nAsk user@example.org, or see https://example.org/a@b: the key token is: secret"


def test_a_prompt_is_shown_as_it_stands(configs: Configs) -> None:
    text = configs.changed(("  - name: medical\n", f"  - name: medical\n    system_prompt: {json.dumps(PROMPT)}\n"))
    assert masked(configs.load(text).config)["categories"][1]["system_prompt"] == PROMPT


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:password@host/models/m", "https://***@host/models/m"),
        ("https://hf_token@host:8443/m", "https://***@host:8443/m"),
        ("https://user:p@ss@host/m", "https://***@host/m"),
        ("s3://key:secret@bucket/a and s3://key:secret@bucket/b", "s3://***@bucket/a and s3://***@bucket/b"),
        ("https://host/m@main", "https://host/m@main"),
        ("models/m", "models/m"),
    ],
)
def test_the_credentials_in_a_url_are_hidden_and_the_rest_is_shown(configs: Configs, url: str, shown: str) -> None:
    text = f"{configs.good}classifier: {{category_model: {{model_id: {json.dumps(url)}}}}}\n"
    assert masked(configs.load(text).config)["classifier"]["category_model"]["model_id"] == shown


def test_values_of_keys_that_say_secret_are_hidden() -> None:
    block = {
        "env": {"HF_TOKEN": "hf_abc", "PATH": "/bin"},
        "api_key": "sk-1",
        "auth_token": ["a", "b"],
        "Password": "p",
        "Authorization": "Bearer x",
        "url": "http://u:p@host/mcp",
        "keywords": ["key", "token"],
        "max_tokens": 512,
        "tool_name": "classify_text",
    }
    assert _mask({"mcp_category_model": block}) == {
        "mcp_category_model": {
            "env": {"HF_TOKEN": "***", "PATH": "***"},
            "api_key": "***",
            "auth_token": ["***", "***"],
            "Password": "***",
            "Authorization": "***",
            "url": "http://***@host/mcp",
            "keywords": ["key", "token"],
            "max_tokens": 512,
            "tool_name": "classify_text",
        }
    }
