"""Options and checks that several subcommands share."""

import sys
from pathlib import Path

import pytest

from .conftest import Run


@pytest.mark.parametrize(
    ("command", "extra", "arguments"),
    [
        ("ab", "evaluate", ("record",)),
        ("calibrate", "evaluate", ("--data", "prompts.jsonl")),
        ("evaluate", "evaluate", ("--data", "prompts.jsonl")),
        ("fit", "train", ()),
        ("prove", "evaluate", ("--data", "pairs.jsonl")),
    ],
)
def test_command_without_scipy_names_the_extra(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    extra: str,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy", None)
    expected = f"{command} needs scipy: pip install 'vllm-lora-router[{extra}]'\n"
    assert run(command, *arguments) == (1, "", expected)
    assert not any(tmp_path.iterdir())
