"""A run directory for tests of shared state."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_lora_router.coordination.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    run = RunDirectory.open("server", tmp_path / "run")
    yield run
    run.close()
