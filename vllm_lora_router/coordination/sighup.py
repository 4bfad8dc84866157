"""SIGHUP reloads the configuration, also if it reaches only the parent of the processes that serve."""

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType

from vllm_lora_router.coordination.repeat import repeat
from vllm_lora_router.coordination.run_directory import RunDirectoryError

FILE = "reload"
POLL_S = 0.5

logger = logging.getLogger("vllm_lora_router.server")

_tasks: set[asyncio.Task[None]] = set()


def install_sighup_handler(folder: Callable[[], Path]) -> None:
    """Make a SIGHUP to this process request a reload from the processes that share `folder`.

    Call it in the main thread.
    """

    def request_reload(number: int, frame: FrameType | None) -> None:
        try:
            file = folder() / FILE
            file.touch()
        except FileNotFoundError as error:
            logger.warning("SIGHUP: no reload requested, no server is running (%s)", error)
        except (OSError, RunDirectoryError) as error:  # an exception in a signal handler would end the server
            logger.warning("SIGHUP: no reload requested (%s)", error)

    signal.signal(signal.SIGHUP, request_reload)


def reload_on_sighup(folder: Path, reload: Callable[[], Awaitable[object]]) -> None:
    """Call `reload` when a process that shares `folder` receives a SIGHUP. Only one of the processes calls it."""
    if threading.current_thread() is threading.main_thread():
        install_sighup_handler(lambda: folder)

    async def poll() -> None:
        try:
            await asyncio.to_thread((folder / FILE).unlink)
        except FileNotFoundError:
            return
        logger.info("SIGHUP: reloading the configuration")
        await reload()

    _tasks.add(asyncio.ensure_future(repeat("SIGHUP: reloading the configuration", poll, logger, every_s=POLL_S)))
