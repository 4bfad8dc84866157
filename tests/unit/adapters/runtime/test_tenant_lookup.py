"""Finding that an adapter belongs to another tenant, and the cost of the lookup."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime import pool as module
from vllm_lora_router.adapters.runtime import tenant_lookup
from vllm_lora_router.adapters.runtime.lease import LeaseRefusedError, OtherTenantsAdapterError, UnknownAdapterError
from vllm_lora_router.adapters.runtime.version_log import AdapterKey
from vllm_lora_router.config.schema import AdapterSettings

from .conftest import Process, Server, put_adapter, until, write_adapter


@dataclass(frozen=True)
class SlowSource(Source):
    """A source on a file system that answers a search only after `answers` is set."""

    answers: threading.Event = field(default_factory=threading.Event, compare=False)
    searches: list[str] = field(default_factory=list, compare=False)

    def tenants(self, name: str) -> Iterator[str]:
        self.searches.append(name)
        assert self.answers.wait(20)
        return super().tenants(name)


@pytest.fixture
def source(server: Server) -> Iterator[SlowSource]:
    source = SlowSource(server.root / "tenants", ("{tenant}", "{name}"))
    source.answers.set()
    yield source
    source.answers.set()


@pytest.fixture
def process(server: Server, source: SlowSource) -> Process:
    """Tenant acme has "secret" and "medical", evil has none, and "acme/medical" and "legal" are shared."""
    for name in ("secret", "medical"):
        put_adapter(server.root / "tenants/acme" / name, f"acme's {name}")
    (server.root / "tenants/evil").mkdir()
    server.uploads.mkdir()
    put_adapter(server.uploads / "legal", "all")
    declared = server.declared("acme/medical", "shared")
    return server.process(server.resolver(declared, sources=(source, Source.parse(str(server.uploads)))))


async def refused(process: Process, name: str, tenant: str | None, *, by_client: bool = False) -> LeaseRefusedError:
    with pytest.raises(LeaseRefusedError) as raised:
        await process.pool.lease(name, tenant, by_client=by_client)
    return raised.value


@pytest.mark.parametrize("tenant", ["a\\b", ".acme", "ac\tme", "x" * 300])
async def test_tenant_without_a_folder_name_gets_the_adapters_of_all_tenants(process: Process, tenant: str) -> None:
    assert await process.pool.can_serve("legal", tenant)
    assert await process.request("legal", tenant) == "all"
    assert isinstance(await refused(process, "secret", tenant), OtherTenantsAdapterError)


@pytest.mark.parametrize("tenant", ["evil", None, "new", "evil/../acme", ".acme", "x" * 300])
@pytest.mark.parametrize("name", ["secret", "acme/secret"])
async def test_adapter_that_only_another_tenant_has_raises_other_tenants_adapter_error(
    process: Process, name: str, tenant: str | None
) -> None:
    assert process.pool.lease_now(name, tenant) is None
    error = await refused(process, name, tenant)
    assert isinstance(error, OtherTenantsAdapterError) and str(error) == f"adapter {name!r} belongs to another tenant"
    assert await process.pool.belongs_to_other_tenant(name, tenant)
    assert await process.request("secret", "acme") == "acme's secret"


@pytest.mark.parametrize(
    ("name", "tenant"),
    [
        ("missing", "evil"),
        ("missing", None),
        ("acme/nothing", "evil"),
        ("nowhere/secret", "evil"),
        ("acme/legal", "evil"),  # a shared adapter under an invalid name
        ("acme/secret", "acme"),  # its own adapter under an invalid name
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
async def test_missing_adapter_belongs_to_no_tenant(process: Process, name: str, tenant: str | None) -> None:
    assert not isinstance(await refused(process, name, tenant), OtherTenantsAdapterError)
    assert not await process.pool.belongs_to_other_tenant(name, tenant)


async def test_folder_without_adapter_files_belongs_to_no_tenant(server: Server, process: Process) -> None:
    for name in ("empty", ".hidden"):
        (server.root / "tenants/acme" / name).mkdir()
    write_adapter(server.root / "tenants/.trash/old", "deleted")
    for name in ("empty", ".hidden", "old"):
        assert not isinstance(await refused(process, name, "evil"), OtherTenantsAdapterError)


async def test_problem_of_own_adapter_is_reported_even_if_another_tenant_has_one_of_that_name(
    server: Server, process: Process
) -> None:
    put_adapter(server.root / "tenants/evil/secret", "too narrow", hidden=8)
    error = await refused(process, "secret", "evil")
    assert not isinstance(error, OtherTenantsAdapterError | UnknownAdapterError)
    assert not await process.pool.belongs_to_other_tenant("secret", "evil")
    assert "too narrow" not in str(error) and await process.request("secret", "acme") == "acme's secret"


async def test_shared_adapter_never_belongs_to_another_tenant(server: Server, process: Process) -> None:
    put_adapter(server.root / "tenants/acme/legal", "acme's legal")
    assert await process.request("legal", "evil") == "all"
    assert not await process.pool.belongs_to_other_tenant("legal", "evil")
    shutil.rmtree((server.root / "declared/acme/medical").resolve())
    assert not isinstance(await refused(process, "acme/medical", "evil"), OtherTenantsAdapterError)
    assert not await process.pool.belongs_to_other_tenant("acme/medical", "evil")


async def test_client_does_not_learn_which_names_exist(process: Process, source: SlowSource) -> None:
    errors = {
        (type(error), str(error).replace(name, "NAME"))
        for tenant in ("evil", None)
        for name in ("secret", "missing")
        for error in [await refused(process, name, tenant, by_client=True)]
    }
    assert errors == {(UnknownAdapterError, "there is no adapter 'NAME'")} and source.searches == []
    (slash,) = {type(await refused(process, name, "evil", by_client=True)) for name in ("acme/secret", "acme/nothing")}
    assert slash is not OtherTenantsAdapterError


async def test_without_tenant_sources_no_adapter_belongs_to_another_tenant(server: Server) -> None:
    write_adapter(server.uploads / "acme/secret", "in a subfolder")
    process = server.process()
    for name in ("secret", "acme/secret"):
        assert not isinstance(await refused(process, name, "evil"), OtherTenantsAdapterError)


async def test_repeated_requests_for_a_name_search_the_folders_once(process: Process, source: SlowSource) -> None:
    for _ in range(3):
        errors = await asyncio.gather(*(refused(process, "secret", f"tenant-{number % 9}") for number in range(50)))
        assert {type(error) for error in errors} == {OtherTenantsAdapterError}
    assert source.searches == ["secret"]
    for _ in range(20):
        assert isinstance(await refused(process, "missing", "evil"), UnknownAdapterError)
    assert source.searches == ["secret", "missing"]


async def test_names_that_no_file_can_have_are_not_cached(server: Server, source: SlowSource) -> None:
    pool = server.process(server.resolver(sources=(source,))).pool
    for name in ("x" * 300, "x" * 300 + "/secret"):
        for tenant in (None, "evil"):
            assert not await pool.belongs_to_other_tenant(name, tenant)
    assert source.searches == [] and len(pool._tenant_lookup._answers) == len(pool._tenant_lookup._owners) == 0


async def test_slow_file_system_delays_no_request_and_gets_one_search_at_a_time(
    process: Process, source: SlowSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant_lookup, "MAX_WAIT_S", 0.02)
    source.answers.clear()
    names = [f"missing-{number}" for number in range(20)]
    async with asyncio.timeout(60):
        assert isinstance(await refused(process, "secret", "evil"), UnknownAdapterError)
        for _ in range(2):
            for error in await asyncio.gather(*(refused(process, name, "evil") for name in names)):
                assert isinstance(error, UnknownAdapterError)
        assert await process.request("legal", "evil") == "all"
    assert source.searches == ["secret"]
    source.answers.set()
    await until(lambda: "secret" in process.pool._tenant_lookup._owners)
    assert isinstance(await refused(process, "secret", "evil"), OtherTenantsAdapterError)


async def test_tenant_of_a_serving_adapter_is_known_without_a_search(process: Process, source: SlowSource) -> None:
    assert await process.request("secret", "acme") == "acme's secret"
    source.answers.clear()
    assert isinstance(await refused(process, "secret", "evil"), OtherTenantsAdapterError)
    assert source.searches == []


async def test_new_own_adapter_serves_at_once_after_requests_for_another_tenants(
    server: Server, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ABSENT_S", 0.0)
    process = server.process(process.pool.resolver)
    assert isinstance(await refused(process, "secret", "evil"), OtherTenantsAdapterError)
    put_adapter(server.root / "tenants/evil/secret", "evil's own")
    assert await process.request("secret", "evil") == "evil's own"
    put_adapter(server.uploads / "medical", "all")
    assert await process.request("medical", "evil") == "all"


async def test_new_configuration_clears_the_cached_tenants(server: Server, process: Process) -> None:
    assert isinstance(await refused(process, "secret", "evil"), OtherTenantsAdapterError)
    assert isinstance(await refused(process, "later", "evil"), UnknownAdapterError)
    write_adapter(server.root / "others/acme/later", "later")
    source = Source.parse(str(server.root / "others/{tenant}/{name}"))
    await process.pool.configure(server.resolver(sources=(source,)), AdapterSettings())
    assert isinstance(await refused(process, "secret", "evil"), UnknownAdapterError)
    assert isinstance(await refused(process, "later", "evil"), OtherTenantsAdapterError)


async def test_all_tenant_sources_are_searched(server: Server) -> None:
    server.uploads.mkdir()
    for folder in ("one/acme/secret", "two/acme/secret", "two/globex/secret"):
        write_adapter(server.root / folder, folder)
    sources = tuple(Source.parse(str(server.root / place / "{tenant}/{name}")) for place in ("one", "two"))
    process = server.process(server.resolver(sources=sources))
    lookup = process.pool._tenant_lookup
    assert await lookup._tenants_with(AdapterKey("secret")) == {"acme", "globex"}
    for name in ("secret", "globex/secret"):
        assert isinstance(await refused(process, name, "evil"), OtherTenantsAdapterError)
    assert await process.request("secret", "globex") == "two/globex/secret"
