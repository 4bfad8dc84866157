"""Configuration of LiteLLM's proxy; LiteLLM is not needed for these tests."""

import json
from pathlib import Path

import pytest
import yaml

from vllm_lora_router.tools.bench.serve.litellm import HEALTH, MODEL, arguments, version, write_config

UTTERANCES = {
    "medical-lora": ["What lowers blood pressure?", "Is it a “sprain”?"],
    "legal-lora": ["Who owns a copyright?"],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_config(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:2/", UTTERANCES, "base")


@pytest.fixture
def models(path: Path) -> dict[str, dict[str, str]]:
    """Return the LiteLLM parameters by model name."""
    return {model["model_name"]: model["litellm_params"] for model in yaml.safe_load(path.read_text())["model_list"]}


def test_config_lists_every_adapter_and_the_default_as_vllm_models(models: dict[str, dict[str, str]]) -> None:
    for name in (*UTTERANCES, "base"):
        assert models[name]["model"] == f"hosted_vllm/{name}"
        assert models[name]["api_base"] == "http://127.0.0.1:1/v1"


def test_auto_model_is_routed_by_example_questions(
    models: dict[str, dict[str, str]],
) -> None:
    router = models[MODEL]
    assert router["model"].startswith("auto_router/")
    routes = json.loads(router["auto_router_config"])["routes"]
    assert {route["name"]: route["utterances"] for route in routes} == UTTERANCES
    assert router["auto_router_default_model"] == "base"
    assert all(route["score_threshold"] == 0 for route in routes)


def test_embeddings_come_from_the_given_server(models: dict[str, dict[str, str]]) -> None:
    assert models[models[MODEL]["auto_router_embedding_model"]]["api_base"] == "http://127.0.0.1:2/v1"


def test_default_adapter_is_listed_once(tmp_path: Path) -> None:
    written = write_config(tmp_path, "http://a", "http://b", UTTERANCES, "legal-lora")
    names = [model["model_name"] for model in yaml.safe_load(written.read_text())["model_list"]]
    assert names.count("legal-lora") == 1 and len(names) == len(UTTERANCES) + 2


def test_requests_are_not_retried_and_only_errors_are_logged(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["router_settings"]["num_retries"] == 0
    assert content["litellm_settings"]["json_logs"] and not content["litellm_settings"]["set_verbose"]


def test_proxy_is_started_with_its_configuration_and_a_health_path(path: Path) -> None:
    line = arguments(path)
    assert line[line.index("--config") + 1] == str(path)
    assert HEALTH.startswith("/health")


def test_version_is_none_without_litellm(tmp_path: Path) -> None:
    assert version(tmp_path / "python") is None
    empty = tmp_path / "empty"
    empty.write_text("#!/bin/sh\nexit 1\n")
    empty.chmod(0o755)
    assert version(empty) is None


def test_version_comes_from_the_given_interpreter(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 1.2.3\n")
    python.chmod(0o755)
    assert version(python) == "1.2.3"
