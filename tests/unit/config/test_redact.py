"""Configurations without their secrets, as GET /v1/router/config returns them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.config.redact import _redact_value, redact, redact_arguments, redact_text
from vllm_lora_router.config.yaml_document import ConfigError

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


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("http://host/mcp?api_key=abc&x=1 failed", "http://host/mcp?*** failed"),
        ("'https://u:p@host/m?token=t#top'", "'https://***@host/m?***#top'"),
        ("see https://host/page?", "see https://host/page?"),
        ("tool --password=abc --verbose", "tool --password=*** --verbose"),
        ("tool --api-token abc --port 80", "tool --api-token *** --port 80"),
        ("HF_TOKEN=abc tool", "HF_TOKEN=*** tool"),
        ("the key is not declared: 'medcal-lora'", "the key is not declared: 'medcal-lora'"),
        ("max_tokens=5, --keep-tokens 7", "max_tokens=5, --keep-tokens 7"),
    ],
)
def test_secrets_in_a_text_are_replaced(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted


def test_values_of_secret_options_in_arguments_are_replaced() -> None:
    arguments = ["tool.py", "--token", "abc", "--password=abc", "--url", "http://u:p@host?key=abc", "--db", "t.db"]
    arguments += ["-H", "Authorization: Bearer abc", "API_KEY=abc", "--keys", "2"]
    redacted = ["tool.py", "--token", "***", "--password=***", "--url", "http://***@host?***", "--db", "t.db"]
    redacted += ["-H", "Authorization: ***", "API_KEY=***", "--keys", "2"]
    assert redact_arguments(arguments) == redacted
    block = {"mcp_category_model": {"args": arguments}}
    assert _redact_value(block) == {"mcp_category_model": {"args": redacted}}


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("router: {ab: {salt: 4711}}", "router.ab.salt"),
        ("router: {ab: {salt: [sekrit]}}", "router.ab.salt"),
        ("router: {ab: {key: [sekrits]}}", "router.ab.key"),
        ("classifier: {mcp_category_model: {env: {HF_TOKEN: 4711}}}", "mcp_category_model.env"),
        ("classifier: {mcp_category_model: {url: 'http://u:4711@host:x/mcp?key=4711'}}", "mcp_category_model.url"),
        ("classifier: {mcp_category_model: {url: 'ftp://u:4711@host/mcp?key=4711'}}", "mcp_category_model.url"),
        ("classifier: {mcp_category_model: {args: [--token, 4711]}}", "mcp_category_model.args"),
    ],
)
def test_problems_of_a_configuration_show_no_secrets(configs: Configs, block: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        configs.load(f"{configs.good}{block}\n")
    text = str(error.value)
    assert problem in text and "4711" not in text
    assert ("sekrit" in text) is ("key" in problem)  # the names of request parts are not secret


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
