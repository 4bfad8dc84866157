"""Leases: which version answers a request, and that it stays as it is until the request is over."""

import asyncio
import gc
import time
from contextlib import suppress
from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.snapshots import Snapshot, Snapshots
from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime import pool as module
from vllm_lora_router.adapters.runtime.lease import NotLeased, UnknownAdapter
from vllm_lora_router.adapters.runtime.resolver import Catalogue, Declared
from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, Key
from vllm_lora_router.config.schema import Adapters as AdapterSettings

from .conftest import WEIGHTS, Process, Server, delete, put, read, until, write

MEDICAL = Key("medical")


def swap(server: Server, says: str) -> Path:
    return put(server.uploads / "medical", says)


async def look(*processes: Process) -> None:
    for process in processes:
        await process.look()


async def settle(*processes: Process) -> None:
    for process in processes:
        await process.settle()


def engine_name(process: Process, key: Key = MEDICAL) -> str | None:
    held = process.shelf.held.get(key)
    return held.version.engine_name if held is not None and held.version is not None else None


@pytest.fixture
def process(server: Server) -> Process:
    return server.process()


# Leases


async def test_an_adapter_is_found_copied_and_loaded_for_the_first_who_asks(server: Server, process: Process) -> None:
    swap(server, "v1")
    assert process.pool.lease_now("medical", None) is None
    lease = await process.pool.lease("medical", None)
    assert lease.model == lease.version.engine_name == "medical"
    assert Path(lease.version.content.folder).is_relative_to(server.run / "snapshots")
    assert await process.engine.answer(lease.model) == "v1"
    again = process.pool.lease_now("medical", None)
    assert again is not None and again.version is lease.version
    for one in (lease, again, again):
        one.release()
    assert process.pool.board.uses == {}


async def test_many_who_ask_at_once_make_one_copy_and_one_load(server: Server, process: Process) -> None:
    swap(server, "v1")
    assert await asyncio.gather(*(process.ask("medical") for _ in range(30))) == ["v1"] * 30
    assert len(server.core.loads) == 1 and len(server.snapshots) == 1 and list(process.shelf.ledger.versions) == [2**20]


async def test_two_processes_that_are_asked_at_once_load_once(server: Server) -> None:
    one, two = server.process(), server.process()
    swap(server, "v1")
    answers = await asyncio.gather(*(process.ask("medical") for process in (one, two) for _ in range(5)))
    assert answers == ["v1"] * 10 and len(server.core.loads) == 1
    assert one.shelf.ledger.serving_version(MEDICAL) == two.shelf.ledger.serving_version(MEDICAL)


async def test_a_lease_without_weights_in_memory_is_for_those_who_only_render(server: Server, process: Process) -> None:
    swap(server, "v1")
    await process.ask("medical")
    process.pool.loader.forget(FIRST_ID)
    assert process.pool.lease_now("medical", None) is None
    lease = process.pool.lease_now("medical", None, loaded=False)
    assert lease is not None and process.engine.registry[lease.model] == lease.version
    lease.release()


async def test_an_unknown_name_is_said_to_be_unknown_and_leaves_no_trace(server: Server, process: Process) -> None:
    swap(server, "v1")
    await process.ask("medical")
    pool, shelf = process.pool, process.shelf
    sizes = [len(shelf.held), len(shelf._looking), len(shelf._loading), len(shelf.ledger.serving)]
    for name in ("nobody", *(f"made-up-{number}" for number in range(100)), "../medical", "a\nb", "x" * 300):
        for tenant in (None, "acme"):
            assert pool.lease_now(name, tenant) is None
            with pytest.raises(NotLeased):
                await pool.lease(name, tenant)
            assert not await pool.can_serve(name, tenant)
    await asyncio.sleep(0)
    assert [len(shelf.held), len(shelf._looking), len(shelf._loading), len(shelf.ledger.serving)] == sizes
    assert process.engine.registry.keys() == {"medical"} and len(pool.board.uses) == 0
    with pytest.raises(UnknownAdapter, match="there is no adapter 'nobody'"):
        await pool.lease("nobody", None)


async def test_names_that_tenants_made_up_are_forgotten_after_a_while(server: Server) -> None:
    pool = server.process(server.catalogue(sources=(Source.parse(str(server.uploads / "{tenant}/{name}")),))).pool
    for number in range(100):
        with pytest.raises(UnknownAdapter):
            await pool.lease(f"made-up-{number}", "acme")
    assert len(pool.shelf.held) == 0 and len(pool._absent) <= pool._absent.maxsize < 10**5


async def test_a_waiting_lease_that_is_cancelled_leaves_nothing_behind(server: Server, process: Process) -> None:
    swap(server, "v1")
    server.core.may_load.clear()
    for moment in (0, 0.001, 0.02, 0.05):
        waiting = asyncio.ensure_future(process.ask("medical"))
        await asyncio.sleep(moment)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    server.core.may_load.set()
    assert await process.ask("medical") == "v1"
    assert process.pool.board.uses == {} and not process.shelf._looking and not process.shelf._loading
    assert len(server.core.loads) == 1


async def test_a_lease_that_is_cancelled_while_it_waits_for_a_slot_leaves_nothing_behind(server: Server) -> None:
    process = server.process(slots=1)
    for name in ("medical", "legal"):
        put(server.uploads / name, name)
    await process.ask("legal")
    holder = await process.lease("medical")
    await holder.enter()
    waiting = asyncio.ensure_future(process.ask("legal"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    holder.release()
    assert process.pool.board.uses == {}
    assert await process.ask("legal") == "legal"


async def test_more_adapters_than_slots_all_answer_and_never_too_many_at_once(server: Server) -> None:
    processes = [server.process(slots=2) for _ in range(2)]
    names = [f"adapter-{number}" for number in range(5)]
    for name in names:
        put(server.uploads / name, name)
    asked = [(name, process) for name in names for process in processes for _ in range(3)]
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(process.ask(name, seconds=0.005) for name, process in asked))
    assert answers == [name for name, _ in asked]
    assert server.core.most_running <= 2


async def test_a_kept_lease_stays_for_good_but_gives_its_slot_back(server: Server) -> None:
    process = server.process(slots=1)
    swap(server, "v1")
    lease = await process.lease("medical")
    await lease.enter()
    lease.keep()
    lease.release()
    assert process.pool.slots.running == frozenset()
    swap(server, "v2")
    await look(process)
    await settle(process)
    for _ in range(10):
        await process.tend()
        await asyncio.sleep(0.01)
    assert await process.engine.answer(lease.model) == "v1"


# Swaps


async def test_a_swap_takes_over_when_it_is_in_memory_and_not_before(server: Server, process: Process) -> None:
    swap(server, "v1")
    lease = await process.lease("medical")
    server.core.may_load.clear()
    swap(server, "v2")
    await look(process)
    assert await process.ask("medical") == "v1"  # v2 is being loaded
    server.core.may_load.set()
    await settle(process)
    assert await process.ask("medical") == "v2"
    server.core.memory.clear()  # others needed the room
    assert await process.engine.answer(lease.model) == "v1"
    lease.release()


async def test_what_is_loaded_and_not_in_use_gives_way_without_a_pause(server: Server, process: Process) -> None:
    swap(server, "v1")
    assert await process.ask("medical") == "v1"
    swap(server, "v2")
    await look(process)
    lease = process.pool.lease_now("medical", None)
    assert lease is not None
    lease.release()
    await settle(process)
    assert await process.ask("medical") == "v2"


async def test_swapped_back_is_the_version_it_was(server: Server, process: Process) -> None:
    names = []
    for says in ("v1", "v2", "v1", "v2"):
        swap(server, says)
        await look(process)
        if names:
            await settle(process)
        assert await process.ask("medical") == says
        names.append(str(engine_name(process)))
    assert names == [names[0], names[1]] * 2 and names[0] == "medical" and names[1].startswith("medical@")


async def test_swapped_back_while_the_new_one_loads_stays_what_it_was(server: Server, process: Process) -> None:
    swap(server, "v1")
    assert await process.ask("medical") == "v1"
    server.core.may_load.clear()
    swap(server, "v2")
    await look(process)
    swap(server, "v1")
    await look(process)
    server.core.may_load.set()
    await settle(process)
    await look(process)
    assert await process.ask("medical") == "v1"


async def test_swapped_back_while_the_new_one_loads_the_others_may_throw_away_what_is_old(
    server: Server, process: Process
) -> None:
    swap(server, "v1")
    await process.ask("medical")
    server.core.may_load.clear()
    swap(server, "v2")
    await look(process)
    swap(server, "v1")
    await look(process)
    assert next(process.pool.board.all()).sequence == process.shelf.ledger.sequence
    server.core.may_load.set()


async def test_a_swap_is_followed_by_all_processes(server: Server) -> None:
    one, two = server.process(), server.process()
    for says in ("v1", "v2", "v3"):
        swap(server, says)
        await look(one, two)
        await settle(one, two)
        assert await one.ask("medical") == await two.ask("medical") == says
    assert one.shelf.ledger.versions == two.shelf.ledger.versions and len(one.shelf.ledger.versions) == 3


async def test_a_process_that_does_not_look_at_files_follows_those_who_do(server: Server) -> None:
    one, two = server.process(), server.process()
    swap(server, "v1")
    assert await one.ask("medical") == await two.ask("medical") == "v1"
    swap(server, "v2")
    await one.look()
    await two.tending.follow()
    await two.settle()
    assert await two.ask("medical") == "v2"


async def test_who_was_slow_to_take_a_version_in_does_not_go_over_its_successor(server: Server) -> None:
    one, two = server.process(), server.process()

    class Slow(Snapshots):
        def take(self, source: Path, within: Path | None = None) -> Snapshot:
            taken = super().take(source, within)
            one.shelf.intake.snapshots = Snapshots(self.folder)
            swap(server, "v2")
            two.shelf._take(MEDICAL)
            return taken

    one.shelf.intake.snapshots = Slow(one.shelf.intake.snapshots.folder)
    swap(server, "v1")
    assert await one.ask("medical") == "v2"
    assert len(one.shelf.ledger.versions) == 1


async def test_a_version_that_was_superseded_before_its_first_lease_does_no_harm(
    server: Server, process: Process
) -> None:
    for says in ("v1", "v2", "v3"):
        swap(server, says)
        await process.shelf.look(MEDICAL)
    assert await process.ask("medical") == "v3"
    assert len(server.core.loads) == 1
    await process.tend_until(lambda: len(server.snapshots) == 1)
    assert await process.ask("medical") == "v3"


async def test_a_swap_under_a_lease_that_still_loads_does_not_change_that_lease(
    server: Server, process: Process
) -> None:
    swap(server, "v1")
    server.core.may_load.clear()
    waiting = asyncio.ensure_future(process.lease("medical"))
    await until(lambda: server.core.loading)
    swap(server, "v2")
    await look(process)
    server.core.may_load.set()
    lease = await waiting
    assert await process.engine.answer(lease.model) == "v1"
    lease.release()
    await settle(process)
    assert await process.ask("medical") == "v2"


async def test_an_adapter_that_rests_while_a_lease_is_loaded_stays_for_that_lease(
    server: Server, process: Process
) -> None:
    swap(server, "v1")
    server.core.may_load.clear()
    waiting = asyncio.ensure_future(process.lease("medical"))
    await until(lambda: server.core.loading)
    await process.shelf.rest(MEDICAL)
    for _ in range(8):
        await process.tend()
        await asyncio.sleep(0.01)
    server.core.may_load.set()
    lease = await waiting
    server.core.memory.clear()
    assert await process.engine.answer(lease.model) == "v1"
    lease.release()
    assert process.engine.registry == {}
    assert await process.ask("medical") == "v1"


async def test_an_adapter_that_is_gone_the_moment_it_was_found_is_said_to_be(server: Server, process: Process) -> None:
    swap(server, "v1")
    waiting = asyncio.ensure_future(process.pool.lease("medical", None))
    await until(lambda: MEDICAL in process.shelf._looking)

    def gone(_: object) -> None:
        process.shelf.ledger.rest(MEDICAL)
        process.shelf.follow([MEDICAL])
        process.shelf.drop(MEDICAL)

    process.shelf._looking[MEDICAL].add_done_callback(gone)
    with pytest.raises(NotLeased, match="taken away just now"):
        await waiting


# What cannot be served


@pytest.mark.parametrize("bad", ["truncated", "too large a rank", "another base's"])
async def test_what_cannot_be_served_leaves_the_old_version_serving(
    server: Server, process: Process, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    swap(server, "v1")
    await process.ask("medical")
    staged = write(server.uploads / ".staged", "bad", **{"too large a rank": {"rank": 16}}.get(bad, {}))
    if bad == "another base's":
        staged = write(server.uploads / ".staged2", "bad", hidden=32)
    if bad == "truncated":
        (staged / WEIGHTS).write_bytes((staged / WEIGHTS).read_bytes()[:-100])
    (server.uploads / ".link").symlink_to(staged.name)
    (server.uploads / ".link").replace(server.uploads / "medical")
    for _ in range(3):
        await process.tend()
    assert await process.ask("medical") == "v1"
    assert caplog.text.count("is not served as it lies there") == 1
    assert "version medical goes on serving" in caplog.text
    assert await process.pool.names(None) == ["medical"]
    swap(server, "v2")
    await look(process)
    await settle(process)
    assert await process.ask("medical") == "v2"


async def test_what_never_could_be_served_says_why_and_is_taken_when_it_can(server: Server, process: Process) -> None:
    put(server.uploads / "medical", "bad", rank=16)
    for _ in range(2):
        with pytest.raises(NotLeased, match=r"rank 16 is above --max-lora-rank 8"):
            await process.pool.lease("medical", None)
    assert await process.pool.names(None) == [] and not await process.pool.can_serve("medical", None)
    swap(server, "v1")
    assert await process.ask("medical") == "v1"


async def test_what_the_engine_does_not_load_leaves_the_old_version_serving(server: Server) -> None:
    one, two = server.process(), server.process()
    server.core.broken.add("v2")
    swap(server, "v1")
    assert await one.ask("medical") == await two.ask("medical") == "v1"
    swap(server, "v2")
    for _ in range(5):
        await look(one, two)
        await settle(one, two)
        await asyncio.sleep(0.01)
    assert await one.ask("medical") == await two.ask("medical") == "v1"
    swap(server, "v3")
    await look(one, two)
    await settle(one, two)
    assert await one.ask("medical") == await two.ask("medical") == "v3"


async def test_after_a_load_that_failed_the_others_may_throw_away_what_is_old(server: Server, process: Process) -> None:
    server.core.broken.add("v2")
    swap(server, "v1")
    await process.ask("medical")
    swap(server, "v2")
    await look(process)
    await settle(process)
    await process.tend_until(lambda: len(server.snapshots) == 1)


async def test_what_comes_while_the_engine_refuses_its_predecessor_is_taken(server: Server, process: Process) -> None:
    server.core.broken.add("v2")
    swap(server, "v1")
    await process.ask("medical")
    server.core.may_load.clear()
    swap(server, "v2")
    await look(process)
    swap(server, "v3")
    server.core.may_load.set()
    for _ in range(3):
        await settle(process)
        await look(process)
    assert await process.ask("medical") == "v3"


async def test_a_load_that_fails_late_does_not_go_over_what_another_process_took_meanwhile(server: Server) -> None:
    one, two = server.process(), server.process()
    server.core.broken.add("v2")
    swap(server, "v1")
    assert await one.ask("medical") == await two.ask("medical") == "v1"
    server.core.may_load.clear()
    swap(server, "v2")
    await one.look()  # begins to load v2
    swap(server, "v3")
    await two.shelf.look(MEDICAL)  # takes v3 before `one` hears of it
    server.core.may_load.set()
    for _ in range(5):
        await settle(one, two)
        await look(one, two)
    assert await one.ask("medical") == await two.ask("medical") == "v3"


@pytest.mark.parametrize("first", [True, False])
async def test_what_the_engine_does_not_load_cannot_be_asked_for_around_us(
    server: Server, process: Process, first: bool
) -> None:
    """vLLM would load it between two steps, and end when it fails."""
    server.core.broken.add("v2")
    if not first:
        swap(server, "v1")
        await process.ask("medical")
        process.pool.loader.forget(FIRST_ID)  # others needed the room
    swap(server, "v2")
    await look(process)
    with pytest.raises(NotLeased, match="does not load v2"):
        await process.pool.lease("medical", None)
    assert "v2" not in [read(Path(version.content.folder)) for version in process.engine.registry.values()]


async def test_a_copy_that_somebody_deleted_is_no_error_of_the_servers(server: Server, process: Process) -> None:
    swap(server, "v1")
    version = await process.shelf.look(MEDICAL)
    process.shelf.intake.snapshots.remove(version.content.digest)
    with suppress(NotLeased):
        assert await process.ask("medical") == "v1"
    assert await process.ask("medical") == "v1"


# Deletion


async def test_a_deleted_declared_adapter_goes_on_serving(server: Server) -> None:
    process = server.process(server.catalogue(server.declared("declared", "v1")))
    assert await process.pool.prepare(["declared"]) == {}
    delete(server.root / "declared" / "declared")
    for _ in range(10):
        await process.tend()
        await asyncio.sleep(0.01)
    assert await process.ask("declared") == "v1"
    put(server.root / "declared" / "declared", "v2")
    await look(process)
    await settle(process)
    assert await process.ask("declared") == "v2"


async def test_a_deleted_adapter_of_a_source_is_answered_until_it_is_gone_for_good(server: Server) -> None:
    one, two = server.process(), server.process()
    swap(server, "v1")
    lease = await one.lease("medical")
    await two.ask("medical")
    delete(server.uploads / "medical")
    await look(one, two)
    assert await one.ask("medical") == await two.ask("medical") == "v1"  # it may be being replaced
    await asyncio.sleep(0.06)
    await look(one, two)
    for process in (one, two):
        with pytest.raises(UnknownAdapter):
            await process.lease("medical")
        assert await process.pool.names(None) == []
    assert MEDICAL not in two.shelf.held and two.engine.registry == {}
    await one.tend()
    server.core.memory.clear()
    assert await one.engine.answer(lease.model) == "v1"
    lease.release()
    assert one.engine.registry == {}
    swap(server, "v1")
    assert await one.ask("medical") == "v1"


async def test_a_folder_that_is_away_for_a_moment_is_not_gone(server: Server, process: Process) -> None:
    swap(server, "v1")
    await process.ask("medical")
    delete(server.uploads / "medical")
    await look(process)
    swap(server, "v2")
    await look(process)
    await settle(process)
    assert await process.ask("medical") == "v2"
    assert process.shelf.held[MEDICAL].missing_since == 0


# Who may ask


def tenants(server: Server, **more) -> Catalogue:
    root = server.root / "tenants"
    for tenant in ("acme", "evil"):
        (root / tenant).mkdir(parents=True, exist_ok=True)
    sources = (Source.parse(str(root / "{tenant}" / "{name}")), Source.parse(str(server.uploads)))
    return server.catalogue(server.declared("acme/medical", "everybody's"), sources=sources, **more)


async def test_a_tenant_gets_its_own_adapter_before_everybodys(server: Server) -> None:
    process = server.process(tenants(server))
    swap(server, "all")
    put(server.root / "tenants/acme/medical", "acme's")
    answers = {tenant: await process.ask("medical", tenant) for tenant in ("acme", "evil", None)}
    assert answers == {"acme": "acme's", "evil": "all", None: "all"}
    everybodys = process.pool.lease_now("medical", "evil")  # that it has no own is known for a while
    assert everybodys is not None
    everybodys.release()


@pytest.mark.parametrize("first", ["acme", None])
async def test_a_tenants_adapter_and_a_declared_one_of_the_same_full_name_are_never_mixed(
    server: Server, first: str | None
) -> None:
    process = server.process(tenants(server))
    put(server.root / "tenants/acme/medical", "acme's")
    for tenant in (first, "acme", None):
        name = "medical" if tenant else "acme/medical"
        assert await process.ask(name, tenant) == ("acme's" if tenant else "everybody's")
    assert await process.ask("acme/medical", "acme") == "everybody's"


async def test_no_tenant_reaches_anothers_adapter(server: Server) -> None:
    process = server.process(tenants(server))
    put(server.root / "tenants/acme/secret", "acme's")
    lease = await process.lease("secret", "acme")
    assert lease.model != lease.version.engine_name == "acme/secret"
    for name in ("secret", "acme/secret", "../acme/secret", lease.version.engine_name, lease.model):
        for tenant in ("evil", None, "evil/../acme"):
            with pytest.raises(NotLeased):
                await process.pool.lease(name, tenant)
            assert process.pool.lease_now(name, tenant) is None
    assert "acme/secret" not in process.engine.registry and "secret" not in await process.pool.names("evil")
    lease.release()


@pytest.mark.parametrize("client_may_name", ["own", "none"])
async def test_where_clients_may_not_name_everything_vllm_knows_adapters_by_keys_nobody_can_guess(
    server: Server, client_may_name
) -> None:
    one, two = (server.process(tenants(server, client_may_name=client_may_name)) for _ in range(2))
    swap(server, "all")
    models = []
    for process in (one, two):
        lease = await process.lease("medical")
        models.append(lease.model)
        assert await process.engine.answer(lease.model) == "all"
        assert process.engine.registry.keys() == {lease.model} and len(lease.model) >= len("medical#") + 16
        assert process.pool.owns(lease.version.engine_name)
        lease.release()
        with pytest.raises(UnknownAdapter):
            await process.pool.lease("medical", None, by_client=True)
        assert process.pool.lease_now("medical", None, by_client=True) is None
    assert models[0] != models[1]


async def test_a_client_that_may_name_its_own_may_name_nothing_else(server: Server) -> None:
    process = server.process(tenants(server, client_may_name="own"))
    put(server.root / "tenants/acme/medical", "acme's")
    swap(server, "all")
    lease = await process.pool.lease("medical", "acme", by_client=True)
    assert await process.engine.answer(lease.model) == "acme's"
    lease.release()
    with pytest.raises(UnknownAdapter):
        await process.pool.lease("medical", "evil", by_client=True)
    assert await process.pool.names("acme") == ["medical"] and await process.pool.names("evil") == []


async def test_a_plain_name_means_the_newest_version_to_what_comes_around_us(server: Server, process: Process) -> None:
    swap(server, "v1")
    lease = await process.lease("medical")
    swap(server, "v2")
    await look(process)
    await settle(process)
    assert await process.engine.answer("medical") == "v1"  # the lease says so
    lease.release()
    assert await process.engine.answer("medical") == "v2"
    swap(server, "v3")
    await look(process)
    await settle(process)
    assert await process.ask("medical") == await process.engine.answer("medical") == "v3"
    assert len(process.engine.registry) == 2


async def test_a_plain_name_is_known_to_a_process_that_saw_no_earlier_version(server: Server) -> None:
    one, two = server.process(), server.process()
    for says in ("v1", "v2"):
        swap(server, says)
        await look(one)
        await settle(one)
        assert await one.ask("medical") == says
    assert await two.ask("medical") == await two.engine.answer("medical") == "v2"


# Configurations


async def test_adapters_that_are_prepared_serve_at_once_and_under_their_names(server: Server) -> None:
    process = server.process(server.catalogue(server.declared("a", "va"), server.declared("b", "vb")))
    assert await process.pool.prepare(["a", "b"]) == {}
    assert await process.engine.answer("a") == "va" and await process.engine.answer("b") == "vb"
    lease = process.pool.lease_now("a", None)
    assert lease is not None
    lease.release()


async def test_what_cannot_be_prepared_is_named_with_the_reason(server: Server) -> None:
    bad = put(server.root / "declared" / "bad", "bad", rank=16)
    catalogue = server.catalogue(server.declared("a", "va"), ("bad", Declared(bad)), ("none", Declared(bad / "x")))
    refused = await server.process(catalogue).pool.prepare(["a", "bad", "none"])
    assert refused.keys() == {"bad", "none"} and "rank 16" in refused["bad"] and "has no" in refused["none"]


async def test_no_more_are_prepared_than_the_engine_keeps(server: Server) -> None:
    server.core.capacity = 2
    names = [f"adapter-{number}" for number in range(4)]
    process = server.process(server.catalogue(*(server.declared(name, name) for name in names)))
    await process.pool.prepare(names)
    assert len(server.core.loads) == 2
    assert await process.ask("adapter-3") == "adapter-3"


async def test_another_configuration_takes_adapters_away_and_moves_them(server: Server) -> None:
    one, two = (server.declared(name, name) for name in ("one", "two"))
    process = server.process(server.catalogue(one, two))
    await process.pool.prepare(["one", "two"])
    lease = await process.lease("one")
    moved = "two", Declared(put(server.root / "elsewhere", "moved"))
    await process.pool.configure(server.catalogue(moved), AdapterSettings(max_wait_ms=100, max_loads_per_s=7))
    assert (process.pool.slots.max_wait_s, process.pool.loader.max_per_s) == (0.1, 7)
    with pytest.raises(UnknownAdapter):
        await process.lease("one")
    assert await process.engine.answer(lease.model) == "one"
    lease.release()
    assert "one" not in process.engine.registry
    await look(process)
    await settle(process)
    assert await process.ask("two") == "moved"


async def test_another_configuration_minds_nothing_that_goes_meanwhile(server: Server, process: Process) -> None:
    class Slow(Catalogue):
        def place(self, key: Key) -> None:
            time.sleep(0.05)

    swap(server, "v1")
    await process.ask("medical")
    configuring = asyncio.ensure_future(process.pool.configure(Slow({}), AdapterSettings()))
    await asyncio.sleep(0.01)
    process.shelf.ledger.rest(MEDICAL)
    process.shelf.follow([MEDICAL])
    process.shelf.drop(MEDICAL)
    await configuring
    assert process.shelf.held == {}


async def test_another_configuration_moves_adapters_that_nobody_watches(server: Server) -> None:
    moved = "one", Declared(put(server.root / "elsewhere", "moved"))
    process = server.process(server.catalogue(server.declared("one", "one"), watch=False, snapshot=False))
    await process.pool.prepare(["one"])
    await process.pool.configure(server.catalogue(moved, watch=False, snapshot=False), AdapterSettings())
    for _ in range(3):
        await process.tend()
        await settle(process)
    assert await process.ask("one") == "moved"


async def test_a_configuration_that_forbids_names_forbids_those_that_vllm_knows(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNLIST_S", 0.05)
    process = server.process()
    swap(server, "v1")
    await process.ask("medical")
    swap(server, "v2")
    await look(process)
    await settle(process)
    await process.ask("medical")
    lease = await process.lease("medical")
    assert process.engine.registry.keys() == {"medical", lease.model}
    await process.pool.configure(server.catalogue(client_may_name="none"), AdapterSettings())
    assert await process.engine.answer(lease.model) == "v2"  # it was on its way
    await asyncio.sleep(0.06)
    assert await process.ask("medical") == "v2"
    assert not process.engine.registry.keys() & {"medical", lease.model}
    lease.release()


async def test_memory_stays_as_it_is_however_many_requests_come(server: Server, process: Process) -> None:
    names = [f"adapter-{number}" for number in range(3)]
    for name in names:
        put(server.uploads / name, name)

    def sizes() -> list[int]:
        pool, shelf = process.pool, process.shelf
        of_pool = (pool, pool.board, pool.slots, pool.loader, pool.registry)
        parts = (*of_pool, shelf, shelf.ledger, shelf.intake, process.tending)
        found = (value for part in parts for value in vars(part).values())
        return [len(value) for value in found if isinstance(value, dict | list | set | tuple)]

    async def requests() -> None:
        for name in names * 10:
            assert await process.ask(name) == name
        for number in range(20):
            with pytest.raises(NotLeased):
                await process.ask(f"{number}-{id(object())}")
        await process.tend()
        gc.collect()

    await requests()
    before = sizes()
    await requests()
    assert sizes() == before
    assert read(server.uploads / names[0]) == names[0]
