"""Adapters come into the engine one after the other, not too fast, and what failed is not taken for loaded."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_lora_router.adapters.runtime.loader import Loader, LoadError
from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, Content, Version
from vllm_lora_router.coordination.run_directory import RunDirectory

from .conftest import Core, FakeEngine, beside, write


@pytest.fixture
def core() -> Core:
    return Core(capacity=4)


@pytest.fixture
def version(tmp_path: Path) -> Callable[[int], Version]:
    """The version of a number, which says its number."""

    def make(number: int) -> Version:
        folder = tmp_path / str(number)
        if not folder.exists():
            write(folder, str(number))
        content = Content(str(number), str(folder), "", rank=4, size_bytes=1)
        return Version(FIRST_ID + number, *(f"adapter-{number}", None, f"adapter-{number}"), content)

    return make


def loader(run: RunDirectory, core: Core, max_per_s: float = 0, capacity: int = 4) -> Loader:
    return Loader(FakeEngine(core), run, capacity=capacity, max_per_s=max_per_s, warm=lambda version: None)


async def test_two_loaders_load_one_adapter_at_a_time(
    run: RunDirectory, core: Core, version: Callable[[int], Version]
) -> None:
    core.load_s = 0.01
    loaders = [loader(run, core), loader(run, core)]
    await asyncio.gather(*(loaders[number % 2].load(version(number)) for number in range(4)))
    assert len(core.loads) == 4 and core.faults == []


async def test_all_loaders_together_load_so_many_a_second_and_no_more(
    run: RunDirectory, core: Core, version: Callable[[int], Version]
) -> None:
    loaders = [loader(run, core, max_per_s=10), loader(run, core, max_per_s=10)]
    await asyncio.gather(*(loaders[number % 2].load(version(number)) for number in range(3)))
    moments = [moment for moment, _ in core.loads]
    assert len(moments) == 3 and moments[-1] - moments[0] > 0.15  # 0.2 but for how late a task may begin


async def test_what_another_process_loaded_is_not_loaded_again(
    run: RunDirectory, core: Core, version: Callable[[int], Version]
) -> None:
    one, two = loader(run, core), loader(run, core, max_per_s=0.1)
    await one.load(version(1))
    async with asyncio.timeout(9):
        await asyncio.gather(two.load(version(1)), two.load(version(1)))
    assert len(core.loads) == 1 and two.is_resident(FIRST_ID + 1)


async def test_what_the_engine_refused_is_not_there_and_may_be_tried_again(
    run: RunDirectory, core: Core, version: Callable[[int], Version]
) -> None:
    core.broken.add("1")
    one = loader(run, core)
    for _ in range(2):
        with pytest.raises(LoadError, match="does not load 1"):
            await one.load(version(1))
        assert not one.is_resident(FIRST_ID + 1) and not core.memory
    core.broken.clear()
    await one.load(version(1))
    assert one.is_resident(FIRST_ID + 1) and len(core.loads) == 3


async def test_a_load_that_fails_holds_up_none_after_it(
    run: RunDirectory, core: Core, version: Callable[[int], Version]
) -> None:
    core.broken.add("1")
    one, two = loader(run, core), loader(run, core)
    async with asyncio.timeout(9):
        failed, *loaded = await asyncio.gather(
            *(one.load(version(1)), one.load(version(2)), two.load(version(3))), return_exceptions=True
        )
    assert isinstance(failed, LoadError) and loaded == [None, None]


async def test_what_was_not_used_for_longest_is_expected_to_have_left_the_engine(
    run: RunDirectory, core: Core, version: Callable[[int], Version]
) -> None:
    core.capacity = 2
    one = loader(run, core, capacity=2)
    await one.load(version(1))
    await one.load(version(2))
    assert one.is_resident(FIRST_ID + 1)
    core.step(version(1))
    await one.load(version(3))
    assert [one.is_resident(FIRST_ID + number) for number in (1, 2, 3)] == [True, False, True]
    assert [FIRST_ID + number in core.memory for number in (1, 2, 3)] == [True, False, True]
    one.forget(FIRST_ID + 3)
    assert not one.is_resident(FIRST_ID + 3)


async def test_files_are_read_before_the_engine_reads_them(
    run: RunDirectory, core: Core, version: Callable[[int], Version]
) -> None:
    read: list[tuple[int, int]] = []
    one = Loader(
        *(FakeEngine(core), run), capacity=4, max_per_s=0, warm=lambda one: read.append((one.id, len(core.loads)))
    )
    await one.load(version(1))
    assert read == [(FIRST_ID + 1, 0)]


async def test_how_long_a_load_took_is_told(run: RunDirectory, core: Core, version: Callable[[int], Version]) -> None:
    core.load_s, told = 0.02, []

    class Metrics:
        def loaded(self, seconds: float) -> None:
            told.append(seconds)

        def failed(self) -> None:
            told.append(None)

    core.broken.add("2")
    one = loader(run, core)
    one.metrics = Metrics()
    await one.load(version(1))
    with pytest.raises(LoadError):
        await one.load(version(2))
    assert told[0] == one.seconds[FIRST_ID + 1] >= 0.02 and told[1:] == [None]


LOADS = """
import fcntl
lock = RunDirectory.open("server", parent).opened("load")
fcntl.flock(lock.__enter__(), fcntl.LOCK_EX)
"""


async def test_a_process_that_is_killed_while_it_loads_holds_nobody_up(
    tmp_path: Path, run: RunDirectory, core: Core, version: Callable[[int], Version]
) -> None:
    with beside(tmp_path / "run", LOADS) as process:
        load = asyncio.ensure_future(loader(run, core).load(version(1)))
        await asyncio.sleep(0.05)
        assert not core.loads
        process.kill()
        async with asyncio.timeout(9):
            await load
