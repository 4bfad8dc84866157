"""Fixtures that run `vllm-lora-router` like its console script."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_lora_router.cli import main

Run = Callable[..., tuple[int, str, str]]

EXAMPLES = Path(__file__).parents[3] / "config"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a wide terminal without colours, and unset all variables that the commands read."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in (
        "VLLM_LORA_ROUTER_CONFIG",
        "VLLM_PLUGINS",
        "VLLM_USE_RUST_FRONTEND",
        "VLLM_SKIP_MODEL_NAME_VALIDATION",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a subcommand; return its exit status and its output on stdout and stderr."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


@pytest.fixture
def examples() -> Path:
    """The folder of example configurations."""
    return EXAMPLES


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a configuration with keyword rules to the working folder, with some text replaced or appended."""
    monkeypatch.chdir(tmp_path)

    def write(*replacements: tuple[str, str], more: str = "") -> Path:
        text = (EXAMPLES / "keyword.yaml").read_text("utf-8")
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "config.yaml"
        file.write_text(text + more, "utf-8")
        return file

    return write
