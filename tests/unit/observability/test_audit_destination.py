"""The key of the text hashes in the audit record."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.observability import audit_destination
from vllm_lora_router.observability.audit_destination import (
    KEY_BYTES,
    AuditDestinationError,
    hmac_key,
    prepare_destination,
)

CONFIG = """
model_config: {base: {}}
default_model: base
categories: [{name: a, model_scores: [{model: base}]}]
router: {audit: {path: audit}}
"""


def write_key(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    file = folder / "audit" / "hmac.key"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)
    return file


def problem_of(folder: Path) -> str:
    """Return the message for an unusable key."""
    (folder / "config.yaml").write_text(CONFIG)
    with pytest.raises(AuditDestinationError) as error:
        prepare_destination(load(folder / "config.yaml"))
    return str(error.value)


@pytest.mark.parametrize("length", [0, 1, 15])
def test_short_key_is_refused(tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_destination, "WRITE_TIMEOUT_S", 0.0)
    write_key(tmp_path, b"x" * length)
    problem = problem_of(tmp_path)
    assert "router.audit.path: " in problem and f"hmac.key has {length} bytes" in problem and "delete it" in problem


@pytest.mark.parametrize("mode", [0o666, 0o604, 0o620, 0o602, 0o644])
def test_key_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    file = write_key(tmp_path, b"x" * 32, mode)
    assert f"(mode {mode:04o}); run: chmod 600 {file}" in problem_of(tmp_path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_key_of_an_administrator_is_used(tmp_path: Path, mode: int) -> None:
    write_key(tmp_path, b"x" * 16, mode)
    assert hmac_key(tmp_path / "audit") == b"x" * 16


def test_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    os.mkfifo(tmp_path / "audit" / "hmac.key", 0o600)
    assert "is not a regular file" in problem_of(tmp_path)


def test_key_is_created_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as FAT and some network file systems answer

    monkeypatch.setattr(os, "link", refuse)
    assert len(hmac_key(tmp_path / "audit")) == KEY_BYTES
    assert [file.name for file in (tmp_path / "audit").iterdir()] == ["hmac.key"]


def test_key_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        hmac_key(tmp_path / "audit")
    assert list((tmp_path / "audit").iterdir()) == []


def test_processes_that_start_together_use_the_same_key(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from vllm_lora_router.observability.audit_destination import *\n"
    code += "sys.stdin.readline(); print(hmac_key(Path(sys.argv[1])).hex())"
    command = [sys.executable, "-c", code, str(tmp_path / "audit")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1
    assert [file.name for file in (tmp_path / "audit").iterdir()] == ["hmac.key"]
