"""Loading adapters: one at a time, at a limited rate, and a failed load does not count as loaded."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_lora_router.adapters.runtime.loader import Loader, LoadError
from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, AdapterContent, Version
from vllm_lora_router.coordination.run_directory import RunDirectory

from ...processes import other_process
from .conftest import EngineCore, FakeEngine, write_adapter


@pytest.fixture
def core() -> EngineCore:
    return EngineCore(capacity=4)


@pytest.fixture
def version(tmp_path: Path) -> Callable[[int], Version]:
    """Return a function that creates the version of an adapter that answers with its number."""

    def make(number: int) -> Version:
        folder = tmp_path / str(number)
        if not folder.exists():
            write_adapter(folder, str(number))
        content = AdapterContent(str(number), str(folder), "", rank=4, size_bytes=1)
        return Version(FIRST_ID + number, *(f"adapter-{number}", None, f"adapter-{number}"), content)

    return make


def loader(run: RunDirectory, core: EngineCore, max_per_s: float = 0, capacity: int = 4) -> Loader:
    return Loader(FakeEngine(core), run, capacity=capacity, max_per_s=max_per_s, warm=lambda version: None)


async def test_two_loaders_load_one_adapter_at_a_time(
    run: RunDirectory, core: EngineCore, version: Callable[[int], Version]
) -> None:
    core.load_s = 0.01
    loaders = [loader(run, core), loader(run, core)]
    await asyncio.gather(*(loaders[number % 2].load(version(number)) for number in range(4)))
    assert len(core.loads) == 4 and core.faults == []


async def test_all_loaders_together_keep_the_rate_limit(
    run: RunDirectory, core: EngineCore, version: Callable[[int], Version]
) -> None:
    loaders = [loader(run, core, max_per_s=10), loader(run, core, max_per_s=10)]
    await asyncio.gather(*(loaders[number % 2].load(version(number)) for number in range(3)))
    starts = [start for start, _ in core.loads]
    assert len(starts) == 3 and starts[-1] - starts[0] > 0.15  # 0.2 minus the delay of a task


async def test_version_loaded_by_another_process_is_not_loaded_again(
    run: RunDirectory, core: EngineCore, version: Callable[[int], Version]
) -> None:
    first, second = loader(run, core), loader(run, core, max_per_s=0.1)
    await first.load(version(1))
    async with asyncio.timeout(60):
        await asyncio.gather(second.load(version(1)), second.load(version(1)))
    assert len(core.loads) == 1 and second.is_resident(FIRST_ID + 1)


async def test_refused_version_is_not_resident_and_can_be_loaded_later(
    run: RunDirectory, core: EngineCore, version: Callable[[int], Version]
) -> None:
    core.unloadable.add("1")
    loader_ = loader(run, core)
    for _ in range(2):
        with pytest.raises(LoadError, match="does not load 1"):
            await loader_.load(version(1))
        assert not loader_.is_resident(FIRST_ID + 1) and not core.memory
    core.unloadable.clear()
    await loader_.load(version(1))
    assert loader_.is_resident(FIRST_ID + 1) and len(core.loads) == 3


async def test_failed_load_does_not_block_later_loads(
    run: RunDirectory, core: EngineCore, version: Callable[[int], Version]
) -> None:
    core.unloadable.add("1")
    first, second = loader(run, core), loader(run, core)
    async with asyncio.timeout(60):
        failed, *loaded = await asyncio.gather(
            *(first.load(version(1)), first.load(version(2)), second.load(version(3))), return_exceptions=True
        )
    assert isinstance(failed, LoadError) and loaded == [None, None]


async def test_least_recently_used_version_is_expected_to_be_evicted(
    run: RunDirectory, core: EngineCore, version: Callable[[int], Version]
) -> None:
    core.capacity = 2
    loader_ = loader(run, core, capacity=2)
    await loader_.load(version(1))
    await loader_.load(version(2))
    assert loader_.is_resident(FIRST_ID + 1)
    core.step(version(1))
    await loader_.load(version(3))
    assert [loader_.is_resident(FIRST_ID + number) for number in (1, 2, 3)] == [True, False, True]
    assert [FIRST_ID + number in core.memory for number in (1, 2, 3)] == [True, False, True]
    loader_.forget(FIRST_ID + 3)
    assert not loader_.is_resident(FIRST_ID + 3)


async def test_files_are_read_into_the_page_cache_before_the_engine_loads_them(
    run: RunDirectory, core: EngineCore, version: Callable[[int], Version]
) -> None:
    warmed: list[tuple[int, int]] = []

    def warm(version: Version) -> None:
        warmed.append((version.id, len(core.loads)))

    await Loader(FakeEngine(core), run, capacity=4, max_per_s=0, warm=warm).load(version(1))
    assert warmed == [(FIRST_ID + 1, 0)]


async def test_loads_and_failures_are_counted_with_their_durations(
    run: RunDirectory, core: EngineCore, version: Callable[[int], Version]
) -> None:
    core.load_s = 0.02
    durations: list[float | None] = []

    class Metrics:
        def count_load(self, seconds: float) -> None:
            durations.append(seconds)

        def count_failed_load(self) -> None:
            durations.append(None)

        def set_snapshot_bytes(self, used_bytes: int) -> None: ...

        def set_unavailable_adapters(self, number: int) -> None: ...

        def set_not_answering(self, number: int) -> None: ...

    core.unloadable.add("2")
    loader_ = loader(run, core)
    loader_.metrics = Metrics()
    await loader_.load(version(1))
    with pytest.raises(LoadError):
        await loader_.load(version(2))
    assert durations == [loader_.seconds[FIRST_ID + 1], None] and loader_.seconds[FIRST_ID + 1] >= 0.02


LOADS = """
import fcntl
lock = RunDirectory.open("server", parent).opened("load")
fcntl.flock(lock.__enter__(), fcntl.LOCK_EX)
"""


async def test_process_killed_during_a_load_does_not_block_others(
    tmp_path: Path, run: RunDirectory, core: EngineCore, version: Callable[[int], Version]
) -> None:
    with other_process(tmp_path / "run", LOADS) as process:
        load = asyncio.ensure_future(loader(run, core).load(version(1)))
        await asyncio.sleep(0.05)
        assert not core.loads
        process.kill()
        async with asyncio.timeout(60):
            await load
