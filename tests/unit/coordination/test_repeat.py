"""Background tasks continue after errors, and log an error that lasts once."""

import asyncio
import errno
import logging

import pytest

from vllm_lora_router.coordination import repeat as module
from vllm_lora_router.coordination.repeat import repeat

logger = logging.getLogger("vllm_lora_router.test")


async def run(monkeypatch: pytest.MonkeyPatch, *outcomes: Exception | None) -> None:
    """Run a task whose steps have these outcomes."""
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    steps = iter(outcomes)
    ended = asyncio.Event()

    async def step() -> None:
        try:
            outcome = next(steps)
        except StopIteration:
            ended.set()
            await asyncio.Event().wait()
        else:
            if outcome is not None:
                raise outcome

    task = asyncio.ensure_future(repeat("watching", step, logger))
    await ended.wait()
    task.cancel()


async def test_error_that_lasts_is_logged_once_and_so_is_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    full = [OSError(errno.ENOSPC, "No space left on device", f"/run/{number}") for number in range(3)]
    await run(monkeypatch, None, *full, None, None, full[0])
    failed = "watching failed ([Errno 28] No space left on device: '/run/0'); trying again"
    assert caplog.messages == [failed, "watching works again", failed]
    assert all(record.exc_info is None for record in caplog.records)


async def test_unexpected_error_is_logged_with_its_traceback_and_a_new_error_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await run(monkeypatch, KeyError("a"), KeyError("a"), KeyError("b"))
    assert caplog.messages == ["watching failed ('a'); trying again", "watching failed ('b'); trying again"]
    assert all(record.exc_info for record in caplog.records)
