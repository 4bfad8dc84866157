"""Which files an adapter's name resolves to under one configuration, and which adapters clients may request."""

from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.adapters.files.sources import NotAllowedError, Source
from vllm_lora_router.adapters.runtime.resolver import ClientMayName, DeclaredFolder, Location, Resolver
from vllm_lora_router.adapters.runtime.version_log import AdapterKey
from vllm_lora_router.config import ConfigError, load

from .conftest import write_adapter

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


def watched_snapshot(folder: Path) -> Location:
    return Location(folder, is_declared=True, is_copied=True, is_watched=True)


def test_declared_adapter_takes_precedence_over_sources_in_their_order(tmp_path: Path) -> None:
    for folder in ("one/medical", "one/legal", "two/legal", "two/finance"):
        write_adapter(tmp_path / folder, folder)
    resolver = with_sources(tmp_path, "one", "two")
    assert resolver.locate(AdapterKey("medical")) == watched_snapshot(tmp_path / "declared")
    legal = resolver.locate(AdapterKey("legal"))
    assert legal is not None and legal.folder == tmp_path / "one/legal" and not legal.is_declared
    finance = resolver.locate(AdapterKey("finance"))
    assert finance is not None and finance.boundary == tmp_path / "two"
    assert resolver.locate(AdapterKey("unknown")) is None
    names = ("medical", "acme/medical", "legal", "finance")
    assert resolver.adapters(None) == [AdapterKey(name) for name in names]


def test_tenants_own_adapter_takes_precedence_and_is_hidden_from_other_tenants(tmp_path: Path) -> None:
    for folder in ("all/legal", "tenants/acme/legal", "tenants/acme/secret"):
        write_adapter(tmp_path / folder, folder)
    resolver = with_sources(tmp_path, "all", "tenants/{tenant}/{name}")
    assert list(resolver.keys("legal", "acme")) == [AdapterKey("legal", "acme"), AdapterKey("legal")]
    assert list(resolver.keys("legal", None)) == [AdapterKey("legal")]
    location = resolver.locate(AdapterKey("legal", "acme"))
    assert location is not None and location.folder == tmp_path / "tenants/acme/legal"
    assert resolver.locate(AdapterKey("secret")) is None and resolver.locate(AdapterKey("secret", "evil")) is None
    assert AdapterKey("secret", "acme") in resolver.adapters("acme")
    assert not any(key.name == "secret" for tenant in (None, "evil") for key in resolver.adapters(tenant))


def test_without_tenant_sources_tenants_have_no_own_adapters(tmp_path: Path) -> None:
    assert list(with_sources(tmp_path, "all").keys("legal", "acme")) == [AdapterKey("legal")]


def test_adapter_with_slash_in_its_name_is_shared_by_all_tenants(tmp_path: Path) -> None:
    resolver = with_sources(tmp_path, "tenants/{tenant}/{name}")
    assert list(resolver.keys("acme/medical", "acme")) == [AdapterKey("acme/medical")]
    assert list(resolver.keys("medical", "acme/europe")) == [AdapterKey("medical")]
    location = resolver.locate(AdapterKey("acme/medical"))
    assert location is not None and location.folder == tmp_path / "shared" and location.is_3d


@pytest.mark.parametrize("name", ["../declared", "a/../../b", ".hidden", "acme/legal"])
def test_name_that_points_outside_of_source_is_refused(tmp_path: Path, name: str) -> None:
    write_adapter(tmp_path / "tenants/acme/legal", "acme's")
    for key in (AdapterKey(name), AdapterKey(name, "acme"), AdapterKey("legal", name)):
        with pytest.raises(NotAllowedError):
            with_sources(tmp_path, "tenants", "tenants/{tenant}/{name}").locate(key)


def test_tenants_link_to_another_tenants_adapter_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "tenants/acme/legal", "acme's")
    (tmp_path / "tenants/evil").mkdir()
    (tmp_path / "tenants/evil/mine").symlink_to("../acme/legal")
    with pytest.raises(NotAllowedError, match="outside of"):
        with_sources(tmp_path, "tenants/{tenant}/{name}").locate(AdapterKey("mine", "evil"))


@pytest.mark.parametrize(
    ("client_may_name", "shared", "has_own"), [("all", True, True), ("own", False, True), ("none", False, False)]
)
def test_client_may_name_decides_which_adapters_clients_may_request(
    tmp_path: Path, client_may_name: ClientMayName, shared: bool, has_own: bool
) -> None:
    write_adapter(tmp_path / "tenants/acme/legal", "acme's")
    resolver = with_sources(tmp_path, "tenants/{tenant}/{name}", client_may_name=client_may_name)
    assert resolver.client_may_request(AdapterKey("medical")) is shared
    assert resolver.client_may_request(AdapterKey("legal", "acme")) is has_own
    names = {key.name for key in resolver.adapters("acme")}
    assert names == {*(["medical", "acme/medical"] if shared else []), *(["legal"] if has_own else [])}
    everything = {key.name for key in resolver.adapters("acme", everything=True)}
    assert everything == {"medical", "acme/medical", "legal"}


def test_configuration_decides_which_adapters_are_copied_and_watched(tmp_path: Path) -> None:
    for folder in ("uploads/legal", "store/finance"):
        write_adapter(tmp_path / folder, folder)
    resolver = from_config(tmp_path, "sources: [uploads, {path: store, immutable: true}]\nclient_may_name: own")
    assert resolver.client_may_name == "own"
    assert resolver.locate(AdapterKey("medical")) == watched_snapshot(tmp_path / "medical")
    legal, finance = resolver.locate(AdapterKey("legal")), resolver.locate(AdapterKey("finance"))
    assert legal is not None and (legal.is_copied, legal.is_watched) == (True, True)
    assert finance is not None and (finance.is_copied, finance.is_watched) == (False, False)
    in_place = from_config(tmp_path, "snapshot: 'off'").locate(AdapterKey("medical"))
    assert in_place is not None and (in_place.is_copied, in_place.is_watched) == (False, True)


def test_on_several_nodes_adapters_are_read_in_place_and_sources_are_refused(tmp_path: Path) -> None:
    location = from_config(tmp_path, "sources: []", one_node=False).locate(AdapterKey("medical"))
    assert location is not None and (location.is_copied, location.is_watched) == (False, False)
    with pytest.raises(ConfigError, match=r"declare them under model_config\.<base>\.loras with a path that exists on"):
        from_config(tmp_path, "sources: [uploads]", one_node=False)


def test_every_invalid_source_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        from_config(tmp_path, "sources: [uploads, '/{name}', 'x/{who}/{name}']")
    text = str(raised.value)
    assert "config.yaml:7:" in text and "'/{name}'" in text and "{who}" in text
