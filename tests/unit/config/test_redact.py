"""Configurations without their secrets, as GET /v1/router/config returns them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.config.redact import _redact_value, redact

if TYPE_CHECKING:
    from .conftest import Configs


def test_the_result_has_the_keys_of_the_file(configs: Configs) -> None:
    redacted = redact(configs.load(configs.good).config)
    assert redacted["model_config"]["base"]["loras"][0]["name"] == "technical-lora"
    assert redacted["router"]["share"] == 1
    assert "bases" not in redacted
    json.dumps(redacted)


PROMPT = "You are an expert.\nAsk user@example.org, or see https://example.org/a@b: the key token is: secret"


def test_a_system_prompt_is_not_changed(configs: Configs) -> None:
    text = configs.changed(("  - name: medical\n", f"  - name: medical\n    system_prompt: {json.dumps(PROMPT)}\n"))
    assert redact(configs.load(text).config)["categories"][1]["system_prompt"] == PROMPT


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("https://user:password@host/models/m", "https://***@host/models/m"),
        ("https://hf_token@host:8443/m", "https://***@host:8443/m"),
        ("https://user:p@ss@host/m", "https://***@host/m"),
        ("s3://key:secret@bucket/a and s3://key:secret@bucket/b", "s3://***@bucket/a and s3://***@bucket/b"),
        ("https://host/m@main", "https://host/m@main"),
        ("models/m", "models/m"),
    ],
)
def test_the_credentials_in_a_url_are_replaced(configs: Configs, url: str, redacted: str) -> None:
    text = f"{configs.good}classifier: {{category_model: {{model_id: {json.dumps(url)}}}}}\n"
    assert redact(configs.load(text).config)["classifier"]["category_model"]["model_id"] == redacted


def test_values_of_keys_with_secret_names_are_replaced() -> None:
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
    assert _redact_value({"mcp_category_model": block}) == {
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
