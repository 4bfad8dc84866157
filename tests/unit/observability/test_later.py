"""What no request waits for is done all the same: once, in its order, and together."""

import asyncio
import logging

import pytest

from vllm_lora_router.observability.deferred import AT_ONCE, MOST, SOON_S, Later

pytestmark = pytest.mark.alone


async def test_what_comes_within_a_while_is_done_together_in_its_order() -> None:
    done: list[int] = []
    later = Later()
    for number in range(3):
        later.add(lambda number=number: done.append(number))
        await asyncio.sleep(SOON_S / 10)
    assert done == []
    await asyncio.sleep(SOON_S * 2)
    assert done == [0, 1, 2]
    later.add(lambda: done.append(3))
    assert done == [0, 1, 2]
    await asyncio.sleep(SOON_S * 2)
    assert done == [0, 1, 2, 3]


async def test_whoever_cannot_wait_has_it_done_now_and_it_is_not_done_again() -> None:
    done: list[str] = []
    later = Later()
    later.add(lambda: done.append("it"))
    later.now()
    assert done == ["it"]
    later.now()
    await asyncio.sleep(SOON_S * 2)
    assert done == ["it"]


async def test_much_of_it_does_not_wait_and_leaves_the_event_loop_to_others_in_between() -> None:
    done: list[int] = []
    later = Later()
    for _ in range(MOST):
        later.add(lambda: done.append(1))
    assert done == []
    seen: list[int] = []
    for _ in range(2 * MOST // AT_ONCE):
        await asyncio.sleep(0)
        seen.append(len(done))
    assert seen[-1] == MOST
    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) <= AT_ONCE


async def test_what_fails_is_said_and_loses_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def fail() -> None:
        raise RuntimeError("no room")

    later = Later()
    for work in (lambda: done.append("before"), fail, lambda: done.append("after")):
        later.add(work)
    with caplog.at_level(logging.ERROR):
        later.now()
    assert done == ["before", "after"]
    assert "no room" in caplog.text


def test_without_an_event_loop_nothing_waits() -> None:
    done: list[str] = []
    Later().add(lambda: done.append("it"))
    assert done == ["it"]


def test_what_a_loop_left_undone_is_done_by_the_next() -> None:
    done: list[str] = []
    later = Later()

    async def one(name: str, wait_s: float) -> None:
        later.add(lambda: done.append(name))
        await asyncio.sleep(wait_s)

    asyncio.run(one("first", 0))
    assert done == []
    asyncio.run(one("second", SOON_S * 2))
    assert done == ["first", "second"]
