"""Where an adapter is looked for under one configuration, and who may ask for it."""

from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.sources import NotAllowed, Source
from vllm_lora_router.adapters.runtime.resolver import Catalogue, Declared, Place
from vllm_lora_router.adapters.runtime.version_log import Key
from vllm_lora_router.config import ConfigError, load

from .conftest import write

CONFIG = """
model_config: {base: {loras: [{name: medical}]}}
default_model: base
categories: [{name: medical, model_scores: [{model: base, lora_name: medical}]}]
router:
  adapters:
"""


def configured(folder: Path, adapters: str, *, one_node: bool = True) -> Catalogue:
    file = folder / "config.yaml"
    file.write_text(CONFIG + "".join(f"    {line}\n" for line in adapters.splitlines()))
    return Catalogue.of(load(file), {"medical": Declared(folder / "medical")}, one_node=one_node)


def catalogue(root: Path, *sources: str, **more) -> Catalogue:
    return Catalogue(
        {"medical": Declared(root / "declared"), "acme/medical": Declared(root / "acmes", is_3d=True)},
        tuple(Source.parse(str(root / source)) for source in sources),
        **more,
    )


def test_a_declared_adapter_comes_before_a_source_and_sources_in_their_order(tmp_path: Path) -> None:
    for folder in ("one/medical", "one/legal", "two/legal", "two/finance"):
        write(tmp_path / folder, folder)
    found = catalogue(tmp_path, "one", "two")
    assert found.place(Key("medical")) == Place(tmp_path / "declared", declared=True, copied=True, watched=True)
    legal = found.place(Key("legal"))
    assert legal is not None and legal.folder == tmp_path / "one/legal" and not legal.declared
    finance = found.place(Key("finance"))
    assert finance is not None and finance.within == tmp_path / "two"
    assert found.place(Key("unknown")) is None
    assert found.names(None) == [Key(name) for name in ("medical", "acme/medical", "legal", "finance")]


def test_a_tenants_own_comes_before_everybodys_and_is_nobody_elses(tmp_path: Path) -> None:
    for folder in ("all/legal", "tenants/acme/legal", "tenants/acme/secret"):
        write(tmp_path / folder, folder)
    found = catalogue(tmp_path, "all", "tenants/{tenant}/{name}")
    assert list(found.keys("legal", "acme")) == [Key("legal", "acme"), Key("legal")]
    assert list(found.keys("legal", None)) == [Key("legal")]
    place = found.place(Key("legal", "acme"))
    assert place is not None and place.folder == tmp_path / "tenants/acme/legal"
    assert found.place(Key("secret")) is None and found.place(Key("secret", "evil")) is None
    assert Key("secret", "acme") in found.names("acme")
    assert not any(key.name == "secret" for tenant in (None, "evil") for key in found.names(tenant))


def test_without_folders_of_tenants_nobody_has_an_own(tmp_path: Path) -> None:
    assert list(catalogue(tmp_path, "all").keys("legal", "acme")) == [Key("legal")]


def test_an_adapter_with_a_slash_in_its_name_is_everybodys_for_tenants_too(tmp_path: Path) -> None:
    found = catalogue(tmp_path, "tenants/{tenant}/{name}")
    assert list(found.keys("acme/medical", "acme")) == [Key("acme/medical")]
    assert list(found.keys("medical", "acme/europe")) == [Key("medical")]
    place = found.place(Key("acme/medical"))
    assert place is not None and place.folder == tmp_path / "acmes" and place.is_3d


@pytest.mark.parametrize("name", ["../declared", "a/../../b", ".hidden", "acme/legal"])
def test_no_name_leads_out_of_a_source(tmp_path: Path, name: str) -> None:
    write(tmp_path / "tenants/acme/legal", "acme's")
    for key in (Key(name), Key(name, "acme"), Key("legal", name)):
        with pytest.raises(NotAllowed):
            catalogue(tmp_path, "tenants", "tenants/{tenant}/{name}").place(key)


def test_a_tenants_link_to_its_neighbours_adapter_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "tenants/acme/legal", "acme's")
    (tmp_path / "tenants/evil").mkdir()
    (tmp_path / "tenants/evil/mine").symlink_to("../acme/legal")
    with pytest.raises(NotAllowed, match="out of"):
        catalogue(tmp_path, "tenants/{tenant}/{name}").place(Key("mine", "evil"))


@pytest.mark.parametrize(
    ("client_may_name", "everybodys", "own"), [("all", True, True), ("own", False, True), ("none", False, False)]
)
def test_what_clients_may_name(tmp_path: Path, client_may_name, everybodys: bool, own: bool) -> None:
    write(tmp_path / "tenants/acme/legal", "acme's")
    found = catalogue(tmp_path, "tenants/{tenant}/{name}", client_may_name=client_may_name)
    assert found.may_name(Key("medical")) is everybodys
    assert found.may_name(Key("legal", "acme")) is own
    names = {key.name for key in found.names("acme")}
    assert names == {*(["medical", "acme/medical"] if everybodys else []), *(["legal"] if own else [])}
    assert {key.name for key in found.names("acme", everything=True)} == {"medical", "acme/medical", "legal"}


def test_a_configuration_says_what_is_copied_and_watched(tmp_path: Path) -> None:
    for folder in ("uploads/legal", "store/finance"):
        write(tmp_path / folder, folder)
    found = configured(tmp_path, "sources: [uploads, {path: store, immutable: true}]\nclient_may_name: own")
    assert found.client_may_name == "own"
    assert found.place(Key("medical")) == Place(tmp_path / "medical", declared=True, copied=True, watched=True)
    legal, finance = found.place(Key("legal")), found.place(Key("finance"))
    assert legal is not None and (legal.copied, legal.watched) == (True, True)
    assert finance is not None and (finance.copied, finance.watched) == (False, False)
    in_place = configured(tmp_path, "snapshot: 'off'").place(Key("medical"))
    assert in_place is not None and (in_place.copied, in_place.watched) == (False, True)


def test_on_several_nodes_adapters_are_read_where_they_are_and_none_come(tmp_path: Path) -> None:
    place = configured(tmp_path, "sources: []", one_node=False).place(Key("medical"))
    assert place is not None and (place.copied, place.watched) == (False, False)
    with pytest.raises(ConfigError, match=r"declare them under model_config\.<base>\.loras with a path that every"):
        configured(tmp_path, "sources: [uploads]", one_node=False)


def test_every_source_that_means_none_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        configured(tmp_path, "sources: [uploads, '/{name}', 'x/{who}/{name}']")
    text = str(raised.value)
    assert "config.yaml:7:" in text and "'/{name}'" in text and "{who}" in text
