"""How servers are started and ended."""

import os
import time
from pathlib import Path

import psutil
import pytest

from vllm_lora_router.tools.demo.server import Server

# A server with a process of its own, as vLLM's engine is one.
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
    while not (said := server.log.read_text()).endswith("\n"):
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
    return psutil.Process(int(said))


def test_it_is_of_its_clients_session_and_shares_the_cores_with_them(server: Server) -> None:
    with server:
        assert os.getsid(server.pid) == os.getsid(0)
        assert os.getsid(child_of(server).pid) == os.getsid(0)


def test_what_it_started_ends_with_it(server: Server) -> None:
    with server:
        child = child_of(server)
        assert os.getpgid(child.pid) != os.getpgid(0)
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert child in gone, alive
