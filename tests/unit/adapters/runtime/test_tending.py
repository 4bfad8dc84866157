"""What nobody uses any more leaves the engine and the disk, and nothing else does."""

import asyncio
import time
from pathlib import Path

import pytest

from vllm_lora_router.adapters.runtime import importer, maintenance
from vllm_lora_router.adapters.runtime.lease import NotLeased
from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, Key
from vllm_lora_router.adapters.runtime.version_manager import STORE

from .conftest import Process, Server, beside, delete, put, until, write

MEDICAL = Key("medical")

LONG_S = 0.3  # six times what an idle version is kept


def swap(server: Server, says: str) -> Path:
    return put(server.uploads / "medical", says)


async def swapped(server: Server, says: str, *processes: Process) -> None:
    """All processes serve what was just put there."""
    swap(server, says)
    for process in processes:
        await process.look()
    for process in processes:
        await process.tending.follow()
        await process.settle()
        assert await process.ask("medical") == says


async def tend_for(seconds: float, *processes: Process) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        for process in processes:
            await process.tend()


async def found_idle(monkeypatch: pytest.MonkeyPatch, *processes: Process) -> None:
    """The next sweep throws away what nobody uses; until now none has."""
    monkeypatch.setattr(maintenance, "STRAYS_S", 60.0)
    monkeypatch.setattr(maintenance, "IDLE_S", 60.0)
    for process in processes * 2:
        await process.tend()
    monkeypatch.setattr(maintenance, "IDLE_S", 0.0)


def retired(process: Process, identifier: int = FIRST_ID) -> bool:
    return identifier in process.shelf.ledger.retired


# What goes


async def test_a_superseded_version_leaves_the_engine_and_the_disk(server: Server) -> None:
    process = server.process()
    await swapped(server, "v1", process)
    await swapped(server, "v2", process)
    assert len(server.snapshots) == 2 and FIRST_ID in server.core.memory
    await process.tend_until(lambda: retired(process))
    assert server.core.memory.keys() == {FIRST_ID + 1} and len(server.snapshots) == 1
    assert not process.pool.loader.is_resident(FIRST_ID)
    assert await process.ask("medical") == "v2"


async def test_a_deleted_adapter_leaves_the_engine_and_the_disk(server: Server) -> None:
    process = server.process()
    await swapped(server, "v1", process)
    delete(server.uploads / "medical")
    await process.tend_until(lambda: retired(process))
    assert server.snapshots == set() and not server.core.memory and process.shelf.held == {}


async def test_a_version_that_comes_back_after_it_was_thrown_away_is_the_same_again(server: Server) -> None:
    one, two = server.process(), server.process()
    await swapped(server, "v1", one, two)
    await swapped(server, "v2", one, two)
    async with asyncio.timeout(20):
        while not retired(one):
            await one.tend()
            await two.tend()
    await swapped(server, "v1", one, two)  # `two` believes that the engine still has it
    assert one.shelf.ledger.serving_version(MEDICAL) == one.shelf.ledger.versions[FIRST_ID]
    await tend_for(LONG_S, one, two)
    assert not retired(one) and await one.ask("medical") == await two.ask("medical") == "v1"


async def test_a_version_that_comes_back_is_loaded_before_a_request_runs_in_any_process(server: Server) -> None:
    one, two = server.process(), server.process()
    await swapped(server, "v1", one, two)
    await swapped(server, "v2", one, two)
    async with asyncio.timeout(20):
        while not retired(two):
            await two.tending.follow()
            await one.tend()
    loads = len(server.core.loads)
    await swapped(server, "v1", two)
    assert len(server.core.loads) == loads + 1  # else the engine reads it between two steps, and all streams wait


async def test_a_version_that_serves_again_while_another_is_thrown_away_disturbs_no_chore(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = server.process()
    put(server.uploads / "other", "v1")
    await swapped(server, "v1", process)
    await process.ask("other")
    versions = list(process.shelf.ledger.versions.values())
    for version in versions:
        await process.shelf.rest(version.key)
    await found_idle(monkeypatch, process)
    server.core.on_unload = lambda: process.shelf.ledger.serve(versions[1].key, versions[1].content)
    await process.tending.sweep()
    assert retired(process) and not retired(process, versions[1].id)


async def test_a_copy_that_another_name_uses_too_stays(server: Server) -> None:
    process = server.process()
    put(server.uploads / "same", "v1")
    await swapped(server, "v1", process)
    assert await process.ask("same") == "v1"
    await swapped(server, "v2", process)
    await process.tend_until(lambda: process.shelf.ledger.retired)
    server.core.memory.clear()
    assert await process.ask("same") == "v1" and len(server.snapshots) == 2


async def test_what_is_read_in_place_is_never_deleted(server: Server) -> None:
    process = server.process(server.catalogue(snapshot=False))
    swap(server, "v1")
    lease = await process.lease("medical")
    version = lease.version
    lease.release()
    assert version.content.folder == str(server.uploads / "medical")
    lying = (server.uploads / "medical").resolve()
    swap(server, "v2")
    await tend_for(LONG_S, process)
    assert lying.exists()


# What stays


async def test_a_version_stays_as_long_as_any_process_leases_it(server: Server) -> None:
    one, two = server.process(), server.process()
    await swapped(server, "v1", one, two)
    lease = await two.lease("medical")
    await swapped(server, "v2", one, two)
    await tend_for(LONG_S, one, two)
    server.core.memory.clear()
    assert not retired(one) and await two.engine.answer(lease.model) == "v1"
    lease.release()
    async with asyncio.timeout(20):
        while not retired(one):
            await one.tend()
            await two.tend()


async def test_a_version_stays_until_all_processes_have_heard_that_it_is_superseded(server: Server) -> None:
    one, two = server.process(), server.process()
    await swapped(server, "v1", one, two)
    await swapped(server, "v2", one)
    await tend_for(LONG_S, one)  # while `two` does no chores
    server.core.memory.clear()
    assert not retired(one) and await two.ask("medical") == "v1"
    async with asyncio.timeout(20):
        while not retired(one):
            await two.tending.follow()
            await one.tend()
    assert await two.ask("medical") == "v2"


async def test_a_version_stays_while_its_successor_is_loaded(server: Server) -> None:
    one, two = server.process(), server.process()
    await swapped(server, "v1", one, two)
    server.core.may_load.clear()
    swap(server, "v2")
    await tend_for(LONG_S, one, two)
    server.core.memory.clear()
    assert not retired(one) and await one.ask("medical") == await two.ask("medical") == "v1"
    server.core.may_load.set()


async def test_a_version_stays_while_a_process_has_read_that_it_rests_and_not_acted_on_it(server: Server) -> None:
    one, two = server.process(), server.process()
    put(server.uploads / "other", "other")
    await swapped(server, "v1", one, two)
    await one.shelf.rest(MEDICAL)
    assert await two.ask("other") == "other"  # reads the ledger
    await tend_for(LONG_S, one)
    server.core.memory.clear()
    assert not retired(one) and await two.ask("medical") == "v1"


async def test_nothing_is_thrown_away_while_somebody_takes_an_adapter_in(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = server.process()
    await swapped(server, "v1", process)
    await swapped(server, "v2", process)
    await found_idle(monkeypatch, process)
    with process.shelf.run.locked(STORE, shared=True):  # it may find this copy, and serve it
        sweeping = asyncio.ensure_future(process.tending.sweep())
        await asyncio.sleep(0.05)
        assert len(server.snapshots) == 2
    await sweeping
    assert retired(process) and len(server.snapshots) == 1


async def test_a_name_that_rests_in_one_process_rests_in_all(server: Server) -> None:
    one, two = server.process(), server.process()
    put(server.uploads / "other", "other")
    await swapped(server, "v1", one, two)
    await one.shelf.rest(MEDICAL)
    assert await two.ask("other") == "other"  # reads the ledger, and so what `one` wrote
    async with asyncio.timeout(20):
        while not retired(one):
            await two.tending.follow()
            await one.tend()
    server.core.memory.clear()
    assert await two.ask("medical") == await one.ask("medical") == "v1"


async def test_a_version_stays_for_a_while_after_its_last_lease(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "IDLE_S", 0.2)
    process = server.process()
    await swapped(server, "v1", process)
    lease = await process.lease("medical")
    await swapped(server, "v2", process)
    lease.release()
    released = time.monotonic()
    await process.tend_until(lambda: retired(process))
    assert time.monotonic() - released >= 0.2


async def test_a_version_stays_while_a_request_runs_that_may_use_it(server: Server) -> None:
    one, two = server.process(), server.process()
    await swapped(server, "v1", one, two)
    with two.pool.unread():  # such as a form with a file, which names the adapter plainly
        running = asyncio.ensure_future(two.engine.answer("medical", seconds=LONG_S + 0.05))
        await swapped(server, "v2", one, two)
        await tend_for(LONG_S, one, two)
        server.core.memory.clear()
        assert not retired(one) and await running == "v1"
    async with asyncio.timeout(20):
        while not retired(one):
            await one.tend()
            await two.tend()


async def test_requests_that_came_later_do_not_keep_a_version(server: Server) -> None:
    process = server.process()
    await swapped(server, "v1", process)
    await swapped(server, "v2", process)
    before, deadline = process.pool.unread(), time.monotonic() + 8
    before.__enter__()
    while not retired(process) and time.monotonic() < deadline:
        after = process.pool.unread()  # one begins before the last has ended
        after.__enter__()
        before.__exit__(None, None, None)
        await process.tend()
        before = after
    before.__exit__(None, None, None)
    assert retired(process)


USES = """
board = Board(RunDirectory.open("server", parent), 77)
board.use(2**20).leases = 1
board.write(2**20)
"""


async def test_a_killed_process_keeps_nothing(server: Server) -> None:
    process = server.process()
    await swapped(server, "v1", process)
    await swapped(server, "v2", process)
    with beside(server.run.parent, USES) as killed:
        await process.tending.follow()
        await tend_for(LONG_S, process)
        assert not retired(process)
        killed.kill()
        killed.wait()
    await process.tend_until(lambda: retired(process))


async def test_a_process_that_ended_keeps_nothing(server: Server) -> None:
    one, two = server.process(), server.process()
    await swapped(server, "v1", one, two)
    await two.lease("medical")
    await swapped(server, "v2", one)
    two.pool.board.close()
    two.shelf.run.close()
    server.processes.remove(two)
    await one.tend_until(lambda: retired(one))


async def test_a_version_that_served_again_and_was_superseded_again_meanwhile_stays(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = server.process(), server.process()
    await swapped(server, "v1", one, two)
    await swapped(server, "v2", one, two)
    await found_idle(monkeypatch, one, two)
    with two.shelf.run.locked(STORE, shared=True):  # somebody takes a large adapter in
        sweeping = asyncio.ensure_future(one.tending.sweep())  # v1 is to be thrown away
        await asyncio.sleep(0.02)
        await swapped(server, "v1", two)
        lease = await two.lease("medical")
        await swapped(server, "v2", two)
    await sweeping
    server.core.memory.clear()
    assert await two.engine.answer(lease.model) == "v1"
    lease.release()


async def test_a_version_that_served_again_between_two_sweeps_is_idle_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = server.process()
    await swapped(server, "v1", process)
    await swapped(server, "v2", process)
    await found_idle(monkeypatch, process)
    await swapped(server, "v1", process)
    with process.pool.unread():  # begins now, while v1 serves
        running = asyncio.ensure_future(process.engine.answer("medical", seconds=0.2))
        await asyncio.sleep(0)
        await swapped(server, "v2", process)
        await process.tending.sweep()
        server.core.memory.clear()
        assert not retired(process) and await running == "v1"


async def test_a_version_stays_while_it_is_loaded_for_one_who_left(server: Server) -> None:
    process = server.process()
    await swapped(server, "v1", process)
    server.core.may_load.clear()
    put(server.uploads / "other", "other")
    leaves = asyncio.ensure_future(process.lease("other"))
    await until(lambda: server.core.loading)
    leaves.cancel()
    await process.shelf.rest(Key("other"))
    await tend_for(LONG_S, process)
    server.core.may_load.set()
    await process.settle()
    assert server.core.faults == []


async def test_a_version_that_serves_again_while_it_is_thrown_away_stays(server: Server) -> None:
    one, two = server.process(), server.process()
    await swapped(server, "v1", one, two)
    await swapped(server, "v2", one, two)
    swap(server, "v1")
    for _ in range(5):  # one throws away what the other takes in
        await tend_for(0.1, two)
        sweeping = asyncio.ensure_future(one.tending.sweep())
        version = await two.shelf.look(MEDICAL)
        await sweeping
        assert not retired(two) and version.content.digest in server.snapshots
        await two.shelf.rest(MEDICAL)


async def test_a_copy_that_came_to_nothing_does_not_stay(server: Server) -> None:
    process = server.process()
    await swapped(server, "v1", process)
    process.shelf.intake.snapshots.take(write(server.uploads / ".other", "replaced while it was copied"))
    await tend_for(LONG_S, process)
    assert len(server.snapshots) == 1


# Files that change


async def test_a_new_adapter_needs_no_one_to_look(server: Server) -> None:
    process = server.process()
    process.tending.start()
    with pytest.raises(NotLeased):
        await process.ask("medical")
    swap(server, "v1")
    assert await process.ask("medical") == "v1"


async def test_the_chores_do_themselves(server: Server) -> None:
    one, two = server.process(), server.process()
    for process in (one, two):
        process.tending.start()
    swap(server, "v1")
    assert await one.ask("medical") == await two.ask("medical") == "v1"
    swap(server, "v2")
    await until(lambda: all(retired(process) for process in (one, two)))
    assert await one.ask("medical") == await two.ask("medical") == "v2"
    delete(server.uploads / "medical")
    await until(lambda: not server.snapshots and not one.shelf.held and not two.shelf.held)


async def test_more_adapters_than_are_looked_at_in_one_go_are_all_watched(server: Server) -> None:
    process = server.process(max_rank=8)
    number = 2 * maintenance.SLICE + 3
    names = [f"adapter-{each}" for each in range(number)]
    source = write(server.root / "same", "v1")
    for name in names:
        (server.uploads / name).symlink_to(put(server.uploads / ".all", "v1").name)
    await asyncio.gather(*(process.shelf.look(Key(name)) for name in names))
    assert source.exists() and len(server.snapshots) == 1
    put(server.uploads / ".all", "v2")
    await process.look()
    serving = [process.shelf.ledger.serving_version(Key(name)) for name in names]
    assert all(version is not None and version.id >= FIRST_ID + number for version in serving)


async def test_files_that_are_overwritten_in_place_are_taken_when_their_writer_is_done(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "QUIET_S", 0.4)
    process = server.process()
    folder = write(server.uploads / "medical", "v1")
    assert await process.ask("medical") == "v1"
    new = write(server.uploads / ".new", "v2")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        whole = (new / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        looking = asyncio.ensure_future(process.tending.watch())
        await asyncio.sleep(0.05)
        (folder / name).write_bytes(whole)
        assert await process.ask("medical") == "v1"
    await looking
    await process.tend_until(lambda: len(process.shelf.ledger.versions) == 2)
    await process.settle()
    assert await process.ask("medical") == "v2"


async def test_an_upload_that_takes_long_keeps_no_other_adapter_waiting(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = server.process()
    uploading = write(server.uploads / "a-large-one", "v1")
    assert await process.ask("a-large-one") == "v1"
    await swapped(server, "v1", process)
    monkeypatch.setattr(importer, "QUIET_S", 0.2)
    ended = asyncio.Event()

    async def upload() -> None:
        while not ended.is_set():
            (uploading / "adapter_config.json").touch()
            await asyncio.sleep(0.02)

    writer = asyncio.ensure_future(upload())
    await asyncio.sleep(0.03)
    swap(server, "v2")
    process.tending.start()
    try:
        await until(lambda: len(process.shelf.ledger.versions) == 3, seconds=8)
    finally:
        ended.set()
        await writer


async def test_two_moments_of_absence_are_not_one_long_one(server: Server) -> None:
    process = server.process()
    await swapped(server, "v1", process)
    for _ in range(2):
        (server.uploads / "medical").rename(server.uploads / ".away")
        await process.tending.watch()
        (server.uploads / ".away").rename(server.uploads / "medical")
        await process.tending.watch()
        await asyncio.sleep(0.06)
    assert MEDICAL in process.shelf.held and process.shelf.ledger.superseded == {}


# Room


def size_bytes(server: Server) -> int:
    """Of one adapter's copy."""
    folder = write(server.root / "measured", "v1")
    return sum(file.stat().st_size for file in folder.iterdir())


async def filled(server: Server, number: int, room_for: float) -> tuple[Process, list[str]]:
    """So many adapters, each asked for once in their order, and a disk that has room for so many."""
    process = server.process(max_bytes=int(room_for * size_bytes(server)))
    names = [f"adapter-{each}" for each in range(number)]
    for name in names:
        put(server.uploads / name, name)
        assert await process.ask(name) == name
    return process, names


def resting(process: Process, names: list[str]) -> list[str]:
    return [name for name in names if process.shelf.ledger.serving_version(Key(name)) is None]


async def test_the_least_recently_used_give_up_their_copies_when_the_disk_fills(server: Server) -> None:
    process, names = await filled(server, 5, room_for=5.3)
    leased = await process.lease(names[0])
    for name in (names[2], names[3], names[4], names[1]):
        await process.ask(name)
    await process.tending.sweep()
    assert resting(process, names) == [names[2]]
    await process.tend_until(lambda: len(server.snapshots) < 5)
    server.core.memory.clear()
    assert await process.engine.answer(leased.model) == names[0]
    leased.release()
    assert await process.ask(names[1]) == names[1]
    assert await process.ask(names[2]) == names[2]  # it comes back when it is asked for


async def test_while_there_is_room_nobody_gives_up_a_copy(server: Server) -> None:
    process, names = await filled(server, 5, room_for=6)
    await tend_for(0.1, process)
    assert resting(process, names) == []


async def test_no_more_give_up_their_copies_than_must(server: Server) -> None:
    process, names = await filled(server, 5, room_for=5.3)
    await process.tend_until(lambda: len(server.snapshots) == 4)
    await tend_for(0.1, process)
    assert resting(process, names) == [names[0]] and len(server.snapshots) == 4


async def test_an_adapter_for_which_there_was_no_room_is_taken_when_there_is(server: Server) -> None:
    process, names = await filled(server, 4, room_for=4.5)
    put(server.uploads / "one-more", "one-more")
    with pytest.raises(NotLeased, match="allow it more"):
        await process.ask("one-more")
    for name in names[:2]:
        delete(server.uploads / name)
    await process.tend_until(lambda: len(server.snapshots) == 2)
    assert await process.ask("one-more") == "one-more"


async def test_room_is_made_for_an_adapter_that_needs_it(server: Server) -> None:
    process, _ = await filled(server, 4, room_for=4.5)
    put(server.uploads / "one-more", "one-more")
    answer = None
    async with asyncio.timeout(8):
        while answer is None:
            try:
                answer = await process.ask("one-more")
            except NotLeased:
                await process.tend()
    assert answer == "one-more" and len(server.snapshots) == 4
