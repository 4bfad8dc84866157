"""Run a script in another Python process, for tests of state that processes share."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREAMBLE = """
import sys, time
from pathlib import Path
from vllm_lora_router.coordination.usage_table import UsageTable
from vllm_lora_router.adapters.runtime.version_log import AdapterContent, AdapterKey, VersionLog
from vllm_lora_router.coordination.run_directory import RunDirectory
parent, arguments = Path(sys.argv[1]), sys.argv[2:]
"""


@contextmanager
def other_process(parent: Path, script: str, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Run `script` in another process, which then waits until it is killed at the end of the block.

    Args:
        parent: available in the script as `parent`.
        arguments: available in the script as `arguments`.
    """
    command = PREAMBLE + script + "\nprint('done', flush=True)\ntime.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", command, str(parent), *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"done\n"
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process with SIGKILL and wait until it has ended."""
    process.kill()
    process.wait()


def wait_for_line(process: "subprocess.Popen[bytes]") -> bytes:
    """Return the next line that the process prints."""
    assert process.stdout is not None
    return process.stdout.readline()
