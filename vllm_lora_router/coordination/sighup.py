"""SIGHUP, wherever it arrives: the process that people signal may only be the parent of those that serve."""

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType

FILE = "reload"
LOOK_S = 0.5

logger = logging.getLogger("vllm_lora_router.server")

_tasks: set[asyncio.Task[None]] = set()


def note_hangups(folder: Callable[[], Path]) -> None:
    """From now on a SIGHUP to this process asks those that share `folder` to reload. For the main thread."""

    def note(number: int, frame: FrameType | None) -> None:
        try:
            (folder() / FILE).touch()
        except OSError as error:
            logger.warning("SIGHUP: no server to tell: %s", error)

    signal.signal(signal.SIGHUP, note)


def on_hangup(folder: Path, reload: Callable[[], Awaitable[object]]) -> None:
    """Calls `reload` when one of the processes that share `folder` got a SIGHUP; only one of them does."""
    if threading.current_thread() is threading.main_thread():
        note_hangups(lambda: folder)

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.to_thread((folder / FILE).unlink)
            except FileNotFoundError:
                continue
            except OSError as error:
                logger.warning("SIGHUP: %s", error)
                continue
            logger.info("SIGHUP: the configuration is read again")
            await reload()

    _tasks.add(asyncio.ensure_future(look()))
