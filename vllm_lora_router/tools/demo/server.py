"""Run a server as a child process: start it, wait until it is ready, stop it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

# Settings for small models on a CPU, without access to a model hub.
ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
FLAGS: tuple[str, ...] = ("--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", "16")


class ServerFailedError(RuntimeError):
    """The server ended or was not ready in time; the message contains the end of its log."""


class Server:
    """`python -m MODULE ARGUMENTS` on a free port of this machine, as a context manager."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        module: str = "vllm_lora_router.serve",
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
        health: str = "/health",
        python: Path | str = sys.executable,
    ) -> None:
        """
        Args:
            health: the path that answers 200 when the server is ready.
            python: the Python interpreter.
        """
        self.port = port or free_port()
        self.log = log
        self.health = health
        self.command = [str(python), "-m", module, *arguments, "--host", "127.0.0.1", "--port", str(self.port)]
        self.directory = directory
        self.environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the process id; the server must have been started."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # A process group, so that signals reach the engine's processes too. Not a session: Linux distributes
                # cores among sessions (autogroup), and a busy engine then delayed its clients by seconds.
                process_group=0,
            )

    def wait(self, seconds: float, tick: Callable[[], object] = lambda: None) -> None:
        """Wait until the server is ready, calling `tick` about twice a second.

        Raises:
            ServerFailedError: the server ended or was not ready within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not self.is_up():
            if self.process is None or self.process.poll() is not None:
                raise ServerFailedError(f"the server ended before it was ready:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerFailedError(f"the server was not ready after {seconds:.0f} s:\n{self.tail()}")
            tick()
            time.sleep(0.5)

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{self.health}", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def stop(self, seconds: float = 30) -> None:
        """Stop the server with SIGTERM, then kill its process group."""
        if self.process is None:
            return
        try:
            self._signal(signal.SIGTERM)
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def tail(self, lines: int = 30) -> str:
        """Return the last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _signal(self, number: int) -> None:
        if self.process is not None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def free_port() -> int:
    """Return a local port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
