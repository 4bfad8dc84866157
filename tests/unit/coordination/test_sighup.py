"""SIGHUP reloads the configuration in the API-server processes, whichever process of the server receives it."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_lora_router.coordination import repeat, sighup
from vllm_lora_router.coordination.sighup import reload_on_sighup

PARENT = """
import sys, time
from pathlib import Path
from vllm_lora_router.coordination.sighup import install_sighup_handler
install_sighup_handler(lambda: Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""


async def test_sighup_to_parent_process_reloads_once(tmp_path: Path) -> None:
    reloads = 0
    reloaded = asyncio.Event()

    async def reload() -> None:
        nonlocal reloads
        reloads += 1
        reloaded.set()

    previous_handler = signal.getsignal(signal.SIGHUP)
    try:
        for _ in range(2):  # two processes that share the folder
            reload_on_sighup(tmp_path, reload)
        command = [sys.executable, "-c", PARENT, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            await asyncio.to_thread(parent.stdout.readline)
            for receiver in (parent.pid, os.getpid()):
                reloaded.clear()
                os.kill(receiver, signal.SIGHUP)
                await asyncio.wait_for(reloaded.wait(), 60)
            await asyncio.sleep(0.6)
            assert parent.poll() is None
            parent.kill()
    finally:
        signal.signal(signal.SIGHUP, previous_handler)
    assert reloads == 2


async def test_reload_that_fails_does_not_end_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat, "RETRY_S", 0.01)
    monkeypatch.setattr(sighup, "POLL_S", 0.01)
    reloads: list[int] = []

    async def reload() -> None:
        reloads.append(len(reloads))
        if len(reloads) == 1:
            raise RuntimeError("no")

    previous_handler = signal.getsignal(signal.SIGHUP)
    try:
        reload_on_sighup(tmp_path, reload)
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(60):
                while len(reloads) < count:
                    await asyncio.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, previous_handler)
