"""SIGHUP reaches the processes that serve, whichever process it was sent to."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from vllm_lora_router.coordination.sighup import on_hangup

PARENT = """
import sys, time
from pathlib import Path
from vllm_lora_router.coordination.sighup import note_hangups
note_hangups(lambda: Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""


async def test_a_signal_to_the_process_that_started_the_others_reloads_once(tmp_path: Path) -> None:
    reloads = 0
    reloaded = asyncio.Event()

    async def reload() -> None:
        nonlocal reloads
        reloads += 1
        reloaded.set()

    before = signal.getsignal(signal.SIGHUP)
    try:
        for _ in range(2):  # two processes that share the folder
            on_hangup(tmp_path, reload)
        command = [sys.executable, "-c", PARENT, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            await asyncio.to_thread(parent.stdout.readline)
            for signalled in (parent.pid, os.getpid()):
                reloaded.clear()
                os.kill(signalled, signal.SIGHUP)
                await asyncio.wait_for(reloaded.wait(), 10)
            await asyncio.sleep(0.6)
            assert parent.poll() is None
            parent.kill()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert reloads == 2
