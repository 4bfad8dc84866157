"""Which files an adapter's name resolves to under one configuration, and which adapters clients may request."""

from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.adapters.files.sources import NotAllowedError, Source
from vllm_lora_router.adapters.runtime.adapter_list import AdapterList
from vllm_lora_router.adapters.runtime.resolver import ClientMayName, DeclaredFolder, Location, Resolver
from vllm_lora_router.adapters.runtime.version_log import AdapterKey
from vllm_lora_router.config import ConfigError, load

from .conftest import Server, locate, write_adapter

CONFIG = """
model_config: {base: {loras: [{name: medical}]}}
default_model: base
categories: [{name: medical, model_scores: [{model: base, lora_name: medical}]}]
router:
  adapters:
"""


def from_config(folder: Path, adapters: str, *, one_node: bool = True) -> Resolver:
    file = folder / "config.yaml"
    file.write_text(CONFIG + "".join(f"    {line}\n" for line in adapters.splitlines()))
    return Resolver.from_config(load(file), {"medical": DeclaredFolder(folder / "medical")}, one_node=one_node)


def with_sources(root: Path, *sources: str, **options: Any) -> Resolver:
    """Return a resolver with two declared adapters and these sources."""
    return Resolver(
        {"medical": DeclaredFolder(root / "declared"), "acme/medical": DeclaredFolder(root / "shared", is_3d=True)},
        tuple(Source.parse(str(root / source)) for source in sources),
        **options,
    )


async def listed(server: Server, resolver: Resolver, tenant: str | None, **options: bool) -> list[AdapterKey]:
    """Return the adapters that exist under this resolver."""
    return await AdapterList(server.process(resolver).manager).keys(tenant, **options)


def watched_snapshot(folder: Path) -> Location:
    return Location(folder, is_declared=True, is_copied=True, is_watched=True)


async def test_declared_adapter_takes_precedence_over_sources_in_their_order(tmp_path: Path, server: Server) -> None:
    for folder in ("one/medical", "one/legal", "two/legal", "two/finance"):
        write_adapter(tmp_path / folder, folder)
    resolver = with_sources(tmp_path, "one", "two")
    assert locate(resolver, AdapterKey("medical")) == watched_snapshot(tmp_path / "declared")
    legal = locate(resolver, AdapterKey("legal"))
    assert legal is not None and legal.folder == tmp_path / "one/legal" and not legal.is_declared
    finance = locate(resolver, AdapterKey("finance"))
    assert finance is not None and finance.boundary == tmp_path / "two"
    assert locate(resolver, AdapterKey("unknown")) is None
    names = ("medical", "acme/medical", "legal", "finance")
    assert await listed(server, resolver, None) == [AdapterKey(name) for name in names]


async def test_tenants_own_adapter_takes_precedence_and_is_hidden_from_other_tenants(
    tmp_path: Path, server: Server
) -> None:
    for folder in ("all/legal", "tenants/acme/legal", "tenants/acme/secret"):
        write_adapter(tmp_path / folder, folder)
    resolver = with_sources(tmp_path, "all", "tenants/{tenant}/{name}")
    assert list(resolver.keys("legal", "acme")) == [AdapterKey("legal", "acme"), AdapterKey("legal")]
    assert list(resolver.keys("legal", None)) == [AdapterKey("legal")]
    location = locate(resolver, AdapterKey("legal", "acme"))
    assert location is not None and location.folder == tmp_path / "tenants/acme/legal"
    assert locate(resolver, AdapterKey("secret")) is None and locate(resolver, AdapterKey("secret", "evil")) is None
    assert AdapterKey("secret", "acme") in await listed(server, resolver, "acme")
    for tenant in (None, "evil"):
        assert not any(key.name == "secret" for key in await listed(server, resolver, tenant))


def test_without_tenant_sources_tenants_have_no_own_adapters(tmp_path: Path) -> None:
    assert list(with_sources(tmp_path, "all").keys("legal", "acme")) == [AdapterKey("legal")]


@pytest.mark.parametrize("tenant", ["a\\b", ".acme", "..", "ac\tme", "x" * 256, "é" * 200])
def test_tenant_whose_name_is_no_folder_name_gets_the_shared_adapters(tmp_path: Path, tenant: str) -> None:
    write_adapter(tmp_path / "all/legal", "all")
    resolver = with_sources(tmp_path, "all", "tenants/{tenant}/{name}")
    for name in ("legal", "medical"):
        assert list(resolver.keys(name, tenant)) == [AdapterKey(name)]
        assert all(locate(resolver, key) is not None for key in resolver.keys(name, tenant))


def test_adapter_with_slash_in_its_name_is_shared_by_all_tenants(tmp_path: Path) -> None:
    resolver = with_sources(tmp_path, "tenants/{tenant}/{name}")
    assert list(resolver.keys("acme/medical", "acme")) == [AdapterKey("acme/medical")]
    assert list(resolver.keys("medical", "acme/europe")) == [AdapterKey("medical")]
    location = locate(resolver, AdapterKey("acme/medical"))
    assert location is not None and location.folder == tmp_path / "shared" and location.is_3d


@pytest.mark.parametrize("name", ["../declared", "a/../../b", ".hidden", "acme/legal"])
def test_name_that_points_outside_of_source_is_refused(tmp_path: Path, name: str) -> None:
    write_adapter(tmp_path / "tenants/acme/legal", "acme's")
    for key in (AdapterKey(name), AdapterKey(name, "acme"), AdapterKey("legal", name)):
        with pytest.raises(NotAllowedError):
            locate(with_sources(tmp_path, "tenants", "tenants/{tenant}/{name}"), key)


def test_tenants_link_to_another_tenants_adapter_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "tenants/acme/legal", "acme's")
    (tmp_path / "tenants/evil").mkdir()
    (tmp_path / "tenants/evil/mine").symlink_to("../acme/legal")
    with pytest.raises(NotAllowedError, match="outside of"):
        locate(with_sources(tmp_path, "tenants/{tenant}/{name}"), AdapterKey("mine", "evil"))


@pytest.mark.parametrize(
    ("client_may_name", "shared", "has_own"), [("all", True, True), ("own", False, True), ("none", False, False)]
)
async def test_client_may_name_decides_which_adapters_clients_may_request(
    tmp_path: Path, server: Server, client_may_name: ClientMayName, shared: bool, has_own: bool
) -> None:
    write_adapter(tmp_path / "tenants/acme/legal", "acme's")
    resolver = with_sources(tmp_path, "tenants/{tenant}/{name}", client_may_name=client_may_name)
    assert resolver.client_may_request(AdapterKey("medical")) is shared
    assert resolver.client_may_request(AdapterKey("legal", "acme")) is has_own
    names = {key.name for key in await listed(server, resolver, "acme")}
    assert names == {*(["medical", "acme/medical"] if shared else []), *(["legal"] if has_own else [])}
    everything = {key.name for key in await listed(server, resolver, "acme", everything=True)}
    assert everything == {"medical", "acme/medical", "legal"}


def test_configuration_decides_which_adapters_are_copied_and_watched(tmp_path: Path) -> None:
    for folder in ("uploads/legal", "store/finance"):
        write_adapter(tmp_path / folder, folder)
    resolver = from_config(tmp_path, "sources: [uploads, {path: store, immutable: true}]\nclient_may_name: own")
    assert resolver.client_may_name == "own"
    assert locate(resolver, AdapterKey("medical")) == watched_snapshot(tmp_path / "medical")
    legal, finance = locate(resolver, AdapterKey("legal")), locate(resolver, AdapterKey("finance"))
    assert legal is not None and (legal.is_copied, legal.is_watched) == (True, True)
    assert finance is not None and (finance.is_copied, finance.is_watched) == (False, False)
    in_place = locate(from_config(tmp_path, "snapshot: 'off'"), AdapterKey("medical"))
    assert in_place is not None and (in_place.is_copied, in_place.is_watched) == (False, True)


def test_on_several_nodes_adapters_are_read_in_place_and_sources_are_refused(tmp_path: Path) -> None:
    location = locate(from_config(tmp_path, "sources: []", one_node=False), AdapterKey("medical"))
    assert location is not None and (location.is_copied, location.is_watched) == (False, False)
    with pytest.raises(ConfigError, match=r"declare them under model_config\.<base>\.loras with a path that exists on"):
        from_config(tmp_path, "sources: [uploads]", one_node=False)


def test_every_invalid_source_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        from_config(tmp_path, "sources: [uploads, '/{name}', 'x/{who}/{name}']")
    text = str(raised.value)
    assert "config.yaml:7:" in text and "'/{name}'" in text and "{who}" in text


def test_folder_without_files_does_not_hide_an_adapter_of_a_later_source(tmp_path: Path) -> None:
    write_adapter(tmp_path / "two/legal", "two")
    (tmp_path / "one/legal").mkdir(parents=True)
    resolver = with_sources(tmp_path, "one", "two")
    located = locate(resolver, AdapterKey("legal"))
    assert located is not None and located.folder == tmp_path / "two/legal"
    (tmp_path / "one/legal/adapter_config.json").write_text("{}")  # an upload that has begun
    located = locate(resolver, AdapterKey("legal"))
    assert located is not None and located.folder == tmp_path / "one/legal"
    # A folder that no other source has is located, so that a request for it gets the reason.
    (tmp_path / "one/new").mkdir()
    located = locate(resolver, AdapterKey("new"))
    assert located is not None and located.folder == tmp_path / "one/new"


async def test_folders_with_names_that_no_adapter_may_have_are_not_listed(tmp_path: Path, server: Server) -> None:
    for name in ("legal", "auto", "acme/base", "text"):
        write_adapter(tmp_path / "uploads" / name, name)
    for name in ("legal", "auto", "base-name"):
        write_adapter(tmp_path / "tenants/globex" / name, name)
    resolver = with_sources(tmp_path, "uploads", "tenants/{tenant}/{name}", reserved={"auto", "base-name"})
    names = [str(key) for key in await listed(server, resolver, "globex", everything=True)]
    # A tenant's own adapter has the tenant in its name, so it cannot be taken for the base model.
    assert names == ["medical", "acme/medical", "legal", "globex/auto", "globex/base-name", "globex/legal"]


def test_auto_names_and_served_names_are_reserved(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG + "    sources: [uploads]\n")
    loaded = load(file)
    resolver = Resolver.from_config(loaded, {}, served_names=["acme/base"])
    assert set(resolver.reserved) == {*loaded.config.auto_names, "acme/base"}
