"""Starting and stopping server processes."""

import os
import time
from pathlib import Path

import psutil
import pytest

from vllm_lora_router.tools.demo.server import Server

# A server that starts a child process, as vLLM starts its engine.
WITH_A_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def server(tmp_path: Path) -> Server:
    (tmp_path / "with_a_child.py").write_text(WITH_A_CHILD)
    return Server([], log=tmp_path / "log", module="with_a_child", directory=tmp_path)


def child_of(server: Server) -> psutil.Process:
    deadline = time.monotonic() + 20
    while not (output := server.log.read_text()).endswith("\n"):
        assert time.monotonic() < deadline, output
        time.sleep(0.02)
    return psutil.Process(int(output))


def test_server_and_its_children_run_in_the_session_of_their_client(server: Server) -> None:
    with server:
        assert os.getsid(server.pid) == os.getsid(0)
        assert os.getsid(child_of(server).pid) == os.getsid(0)


def test_stopping_a_server_stops_its_children(server: Server) -> None:
    with server:
        child = child_of(server)
        assert os.getpgid(child.pid) != os.getpgid(0)
    gone, alive = psutil.wait_procs([child], timeout=60)
    assert child in gone, alive
