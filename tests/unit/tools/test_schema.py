"""`vllm-lora-router schema`."""

import json

import pytest

from vllm_lora_router.cli import main
from vllm_lora_router.config.json_schema import json_schema
from vllm_lora_router.config.reference import markdown


def test_schema_prints_the_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_schema_markdown_prints_the_reference_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown()
