"""What is said of an adapter that only another tenant has, and what it costs to find that out."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime import pool as module
from vllm_lora_router.adapters.runtime import tenant_lookup
from vllm_lora_router.adapters.runtime.lease import AnothersAdapter, NotLeased, UnknownAdapter
from vllm_lora_router.config.schema import Adapters as AdapterSettings

from .conftest import Process, Server, put, until, write


@dataclass(frozen=True)
class Slow(Source):
    """A source on a file system that says what is in its folders when it is allowed to."""

    may: threading.Event = field(default_factory=threading.Event, compare=False)
    asked: list[str] = field(default_factory=list, compare=False)

    def tenants(self, name: str) -> Iterator[str]:
        self.asked.append(name)
        assert self.may.wait(20)
        return super().tenants(name)


@pytest.fixture
def source(server: Server) -> Iterator[Slow]:
    source = Slow(server.root / "tenants", ("{tenant}", "{name}"))
    source.may.set()
    yield source
    source.may.set()


@pytest.fixture
def process(server: Server, source: Slow) -> Process:
    """Tenant acme has "secret" and "medical", evil has nothing, and everybody has "acme/medical" and "legal"."""
    for name in ("secret", "medical"):
        put(server.root / "tenants/acme" / name, f"acme's {name}")
    (server.root / "tenants/evil").mkdir()
    server.uploads.mkdir()
    put(server.uploads / "legal", "all")
    declared = server.declared("acme/medical", "everybody's")
    return server.process(server.catalogue(declared, sources=(source, Source.parse(str(server.uploads)))))


async def refused(process: Process, name: str, tenant: str | None, *, by_client: bool = False) -> NotLeased:
    with pytest.raises(NotLeased) as raised:
        await process.pool.lease(name, tenant, by_client=by_client)
    return raised.value


@pytest.mark.parametrize("tenant", ["evil", None, "new", "evil/../acme", ".acme", "x" * 300])
@pytest.mark.parametrize("name", ["secret", "acme/secret"])
async def test_what_only_another_tenant_has_is_said_to_be_anothers(
    process: Process, name: str, tenant: str | None
) -> None:
    assert process.pool.lease_now(name, tenant) is None
    if tenant in (".acme", "x" * 300) and name == "secret":
        # Who calls itself what no tenant can be called is told that.
        assert not isinstance(await refused(process, name, tenant), AnothersAdapter)
        return
    why = await refused(process, name, tenant)
    assert isinstance(why, AnothersAdapter) and str(why) == f"adapter {name!r} is another tenant's"
    assert await process.pool.is_anothers(name, tenant)
    assert await process.ask("secret", "acme") == "acme's secret"


@pytest.mark.parametrize(
    ("name", "tenant"),
    [
        ("nobody's", "evil"),
        ("nobody's", None),
        ("acme/nothing", "evil"),
        ("nowhere/secret", "evil"),
        ("acme/legal", "evil"),  # everybody's, by a name that is none
        ("acme/secret", "acme"),  # its own, by a name that is none
        ("acme/x/secret", "evil"),
        ("tenants/acme/secret", "evil"),
        ("../acme/secret", "evil"),
        ("/acme/secret", "evil"),
        ("acme/../acme/secret", None),
        ("acme/", None),
        ("/secret", None),
        (".", None),
        ("secret\n", None),
        ("x" * 300, None),
    ],
)
async def test_what_nobody_has_is_nobodys(process: Process, name: str, tenant: str | None) -> None:
    assert not isinstance(await refused(process, name, tenant), AnothersAdapter)
    assert not await process.pool.is_anothers(name, tenant)


async def test_what_is_no_adapter_yet_is_nobodys(server: Server, process: Process) -> None:
    for name in ("empty", ".hidden"):
        (server.root / "tenants/acme" / name).mkdir()
    write(server.root / "tenants/.trash/old", "thrown away")
    for name in ("empty", ".hidden", "old"):
        assert not isinstance(await refused(process, name, "evil"), AnothersAdapter)


async def test_what_is_wrong_with_an_own_adapter_is_said_though_another_has_one_of_that_name(
    server: Server, process: Process
) -> None:
    put(server.root / "tenants/evil/secret", "too narrow", hidden=8)
    why = await refused(process, "secret", "evil")
    assert not isinstance(why, AnothersAdapter | UnknownAdapter)
    assert not await process.pool.is_anothers("secret", "evil")
    assert "too narrow" not in str(why) and await process.ask("secret", "acme") == "acme's secret"


async def test_what_everybody_has_is_never_anothers(server: Server, process: Process) -> None:
    put(server.root / "tenants/acme/legal", "acme's legal")
    assert await process.ask("legal", "evil") == "all"
    assert not await process.pool.is_anothers("legal", "evil")
    shutil.rmtree((server.root / "declared/acme/medical").resolve())
    assert not isinstance(await refused(process, "acme/medical", "evil"), AnothersAdapter)
    assert not await process.pool.is_anothers("acme/medical", "evil")


async def test_a_client_does_not_learn_which_names_exist(process: Process, source: Slow) -> None:
    said = {
        (type(why), str(why).replace(name, "NAME"))
        for tenant in ("evil", None)
        for name in ("secret", "nobody")
        for why in [await refused(process, name, tenant, by_client=True)]
    }
    assert said == {(UnknownAdapter, "there is no adapter 'NAME'")} and source.asked == []
    (slash,) = {type(await refused(process, name, "evil", by_client=True)) for name in ("acme/secret", "acme/nothing")}
    assert slash is not AnothersAdapter


async def test_where_no_tenant_has_its_own_nothing_is_anothers(server: Server) -> None:
    write(server.uploads / "acme/secret", "in a folder of a folder")
    process = server.process()
    for name in ("secret", "acme/secret"):
        assert not isinstance(await refused(process, name, "evil"), AnothersAdapter)


async def test_a_tool_that_names_the_same_again_and_again_has_the_folders_looked_through_once(
    process: Process, source: Slow
) -> None:
    for _ in range(3):
        whys = await asyncio.gather(*(refused(process, "secret", f"tenant-{number % 9}") for number in range(50)))
        assert {type(why) for why in whys} == {AnothersAdapter}
    assert source.asked == ["secret"]
    for _ in range(20):
        assert isinstance(await refused(process, "nobody's", "evil"), UnknownAdapter)
    assert source.asked == ["secret", "nobody's"]


async def test_of_names_that_no_file_can_have_nothing_is_kept(server: Server, source: Slow) -> None:
    pool = server.process(server.catalogue(sources=(source,))).pool
    for name in ("x" * 300, "x" * 300 + "/secret"):
        assert not await pool.is_anothers(name, None) and not await pool.is_anothers(name, "evil")
    assert source.asked == [] and len(pool._owners._answers) == len(pool._owners._owners) == 0


async def test_a_slow_file_system_holds_nobody_up_and_is_asked_one_thing_at_a_time(
    process: Process, source: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant_lookup, "PATIENCE_S", 0.02)
    source.may.clear()
    names = [f"nobody's-{number}" for number in range(20)]
    async with asyncio.timeout(5):
        assert isinstance(await refused(process, "secret", "evil"), UnknownAdapter)
        for _ in range(2):
            for why in await asyncio.gather(*(refused(process, name, "evil") for name in names)):
                assert isinstance(why, UnknownAdapter)
        assert await process.ask("legal", "evil") == "all"
    assert source.asked == ["secret"]
    source.may.set()
    await until(lambda: "secret" in process.pool._owners._owners)
    assert isinstance(await refused(process, "secret", "evil"), AnothersAdapter)


async def test_what_another_tenant_is_served_is_known_without_a_look(process: Process, source: Slow) -> None:
    assert await process.ask("secret", "acme") == "acme's secret"
    source.may.clear()
    assert isinstance(await refused(process, "secret", "evil"), AnothersAdapter)
    assert source.asked == []


async def test_an_own_adapter_serves_as_soon_as_ever_though_it_was_anothers(
    server: Server, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ABSENT_S", 0.0)
    process = server.process(process.pool.catalogue)
    assert isinstance(await refused(process, "secret", "evil"), AnothersAdapter)
    put(server.root / "tenants/evil/secret", "evil's own")
    assert await process.ask("secret", "evil") == "evil's own"
    put(server.uploads / "medical", "all")
    assert await process.ask("medical", "evil") == "all"


async def test_another_configuration_forgets_whose_adapters_were_whose(server: Server, process: Process) -> None:
    assert isinstance(await refused(process, "secret", "evil"), AnothersAdapter)
    assert isinstance(await refused(process, "later", "evil"), UnknownAdapter)
    write(server.root / "others/acme/later", "later")
    source = Source.parse(str(server.root / "others/{tenant}/{name}"))
    await process.pool.configure(server.catalogue(sources=(source,)), AdapterSettings())
    assert isinstance(await refused(process, "secret", "evil"), UnknownAdapter)
    assert isinstance(await refused(process, "later", "evil"), AnothersAdapter)


async def test_of_two_sources_of_tenants_either_may_have_it(server: Server) -> None:
    server.uploads.mkdir()
    for folder in ("one/acme/secret", "two/acme/secret", "two/globex/secret"):
        write(server.root / folder, folder)
    sources = tuple(Source.parse(str(server.root / place / "{tenant}/{name}")) for place in ("one", "two"))
    process = server.process(server.catalogue(sources=sources))
    assert process.pool.catalogue.owners("secret") == {"acme", "globex"}
    for name in ("secret", "globex/secret"):
        assert isinstance(await refused(process, name, "evil"), AnothersAdapter)
    assert await process.ask("secret", "globex") == "two/globex/secret"
