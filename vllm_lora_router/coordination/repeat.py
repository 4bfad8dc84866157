"""Run a step of a background task again and again, and log its errors when they change."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from vllm_lora_router.coordination.shortage import shortage_of

RETRY_S = 1.0  # pause after an error


async def repeat(
    task: str, step: Callable[[], Awaitable[object]], logger: logging.Logger, *, every_s: float = 0.0
) -> None:
    """Run `step` until this coroutine is cancelled. An error does not end it; the step runs again after `RETRY_S`.

    An error that lasts is logged once, and so is its end.

    Args:
        task: the subject of the log lines, such as "adapters: watching the files".
        every_s: pause after each run.
    """
    problem: object = None
    while True:
        try:
            await step()
        except Exception as error:
            shortage = shortage_of(error)
            # The text of an error may contain a size that changes with every attempt.
            kind = repr(error) if shortage is None else (type(error), shortage.errno)
            if kind != problem:
                # A full disk is no error of this program, so its log line needs no traceback.
                logger.error("%s failed (%s); trying again", task, error, exc_info=error if shortage is None else None)
            problem = kind
            await asyncio.sleep(RETRY_S)
        else:
            if problem is not None:
                logger.info("%s works again", task)
            problem = None
        await asyncio.sleep(every_s)
