"""Finding adapter folders by name; names and links that point outside of the source are refused."""

import os
import stat
import time
from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.sources import NotAllowedError, Source, signature

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def adapter(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text("{}")
    (folder / WEIGHTS).write_bytes(weights)
    return folder


def shared(tmp_path: Path) -> Source:
    return Source.parse(str(tmp_path / "adapters"))


@pytest.mark.parametrize("text", ["/adapters", "/adapters/", "/adapters/{name}", "//adapters//./{name}/"])
def test_plain_folder_contains_one_folder_per_adapter(text: str) -> None:
    source = Source.parse(text)
    assert (source.root.name, source.parts, source.by_tenant, source.immutable) == (
        "adapters",
        ("{name}",),
        False,
        False,
    )


def test_template_gives_the_places_of_name_and_tenant() -> None:
    source = Source.parse("/srv/lora/{tenant}/adapters/{name}/current", immutable=True)
    assert source.root == Path("/srv/lora")
    assert source.parts == ("{tenant}", "adapters", "{name}", "current")
    assert source.by_tenant
    assert source.immutable
    assert str(source) == "/srv/lora/{tenant}/adapters/{name}/current"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adapters", "/etc/router/adapters/{name}"),
        ("../{tenant}/{name}", "/etc/router/../{tenant}/{name}"),
        (".", "/etc/router/{name}"),
        ("{name}", "/etc/router/{name}"),
        ("/adapters", "/adapters/{name}"),
    ],
)
def test_relative_template_starts_at_the_base_folder(text: str, expected: str) -> None:
    assert str(Source.parse(text, base=Path("/etc/router"))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "source '' is empty; enter a folder"),
        ("  ", "is empty; enter a folder"),
        ("/adapters/{tenant}", "has no {name}; add it, such as /adapters/{tenant}/{name}"),
        ("/adapters/{name}/{name}", "has {name} twice; use it once"),
        ("/adapters/{tenant}/{tenant}/{name}", "has {tenant} twice; use it once"),
        ("/adapters/lora-{name}", "has 'lora-{name}'; each part of the path must be {name}, {tenant} or a name"),
        ("/adapters/{user}/{name}", "has '{user}'; each part of the path must be"),
        ("/adapters/{}", "has '{}'; each part of the path must be"),
        ("/adapters/{name}}", "has '{name}}'; each part of the path must be"),
        ("/adapters/{name}/../other", "has '..' after a placeholder; use a path without it"),
        (
            "/{name}",
            "does not start with a folder, so it would cover the whole disk; add a folder, such as /adapters/{name}",
        ),
        ("/", "does not start with a folder"),
        ("/adapters\0/{name}", "contains a NUL character; remove it"),
        ("adapters", "is relative; use an absolute path"),
    ],
)
def test_invalid_source_is_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^source '") as refused:
        Source.parse(text)
    assert message in str(refused.value)


def test_adapter_is_found_by_its_name(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapters" / "medical")
    assert shared(tmp_path).find("medical") == folder
    assert shared(tmp_path).find("legal") is None


def test_source_with_missing_folder_is_empty(tmp_path: Path) -> None:
    assert shared(tmp_path).find("medical") is None
    assert shared(tmp_path).names() == []


def test_file_is_not_an_adapter(tmp_path: Path) -> None:
    adapter(tmp_path / "adapters" / "medical")
    (tmp_path / "adapters" / "readme").write_text("")
    assert shared(tmp_path).find("readme") is None
    assert Source.parse(f"{tmp_path}/adapters/{{name}}/current").find("readme") is None


@pytest.mark.parametrize("name", ["~", "~root", "$HOME", "a b", "médecine", "medical.v2", "a" * 255, "{name}", "*"])
def test_name_is_used_literally(tmp_path: Path, name: str) -> None:
    folder = adapter(tmp_path / "adapters" / name)
    assert shared(tmp_path).find(name) == folder
    assert shared(tmp_path).names() == [name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "adapter name '' is empty"),
        (".", "begins with '.'"),
        ("..", "begins with '.'"),
        (".hidden", "begins with '.'"),
        ("../../etc", "begins with '.'"),
        ("a/../../../etc", "contains a slash"),
        ("/etc", "contains a slash"),
        ("medical/", "contains a slash"),
        ("..\\etc", "begins with '.'"),
        ("a\\b", "contains a slash or a backslash"),
        ("a\0b", "contains a control character"),
        ("a\nb", "contains a control character"),
        ("a\x7f", "contains a control character"),
        ("a\ud800", "contains a control character"),
        ("a" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
    ],
)
def test_invalid_name_is_refused_for_adapter_and_tenant(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(NotAllowedError, match=message):
        shared(tmp_path).find(name)
    by_tenant = Source.parse(f"{tmp_path}/{{tenant}}/{{name}}")
    with pytest.raises(NotAllowedError, match=message.replace("adapter name", "tenant")):
        by_tenant.find("medical", name)
    assert by_tenant.names(name) == []


def test_message_shortens_a_long_name(tmp_path: Path) -> None:
    with pytest.raises(NotAllowedError) as refused:
        shared(tmp_path).find("a" * 1_000_000)
    assert len(str(refused.value)) < 1000


def test_each_tenant_has_its_own_adapters(tmp_path: Path) -> None:
    for tenant in ("acme", "globex"):
        adapter(tmp_path / tenant / "medical")
    adapter(tmp_path / "acme" / "legal")
    source = Source.parse(f"{tmp_path}/{{tenant}}/{{name}}")
    assert source.find("medical", "acme") == tmp_path / "acme" / "medical"
    assert source.find("legal", "globex") is None
    assert source.find("medical", None) is None
    assert source.names("acme") == ["legal", "medical"]
    assert source.names("globex") == ["medical"]
    assert source.names("initech") == source.names(None) == []


@pytest.mark.parametrize("template", ["{tenant}/{name}", "lora/{tenant}/own/{name}/current", "{name}/for/{tenant}"])
def test_tenants_yields_the_tenants_that_have_an_adapter_of_this_name(tmp_path: Path, template: str) -> None:
    source = Source.parse(f"{tmp_path}/{template}")

    def folder(tenant: str, name: str) -> Path:
        return tmp_path / template.format(tenant=tenant, name=name)

    assert list(source.tenants("medical")) == []
    for tenant in ("acme", "globex", ".trash", "back\nup", "half"):
        adapter(folder(tenant, "medical"))
    (folder("half", "medical") / CONFIG).unlink()
    adapter(folder("initech", "legal"))
    (tmp_path / template.split("{")[0] / "notes.txt").write_text("")
    assert sorted(source.tenants("medical")) == ["acme", "globex"]
    assert list(source.tenants("legal")) == ["initech"]
    assert list(source.tenants("finance")) == []


def test_shared_source_yields_no_tenants(tmp_path: Path) -> None:
    adapter(tmp_path / "adapters" / "medical")
    assert list(shared(tmp_path).tenants("medical")) == []


def test_link_to_another_tenants_adapter_does_not_count_as_own(tmp_path: Path) -> None:
    adapter(tmp_path / "tenants" / "acme" / "medical")
    for tenant, name, target in (
        ("evil", "medical", "../acme/medical"),
        ("evil", "legal", adapter(tmp_path / "elsewhere")),
        ("initech", "medical", adapter(tmp_path / "tenants" / "initech" / "v1").name),
    ):
        (tmp_path / "tenants" / tenant).mkdir(exist_ok=True)
        (tmp_path / "tenants" / tenant / name).symlink_to(target)
    source = Source.parse(f"{tmp_path}/tenants/{{tenant}}/{{name}}")
    assert sorted(source.tenants("medical")) == ["acme", "initech"]
    assert list(source.tenants("legal")) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "../acme/medical", "deep/medical", "a\nb", "a\0b", "a" * 300]
)
def test_no_tenant_has_an_adapter_of_an_invalid_name(tmp_path: Path, name: str) -> None:
    for folder in ("acme/medical", "acme/.hidden", "acme/deep/medical", "acme/a\nb"):
        adapter(tmp_path / folder)
    (tmp_path / "acme" / CONFIG).write_text("{}")
    assert list(Source.parse(f"{tmp_path}/{{tenant}}/{{name}}").tenants(name)) == []


def test_shared_source_ignores_the_tenant(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapters" / "medical")
    assert shared(tmp_path).find("medical", "auth0|12/34") == folder
    assert shared(tmp_path).names("auth0|12/34") == ["medical"]


def test_names_lists_existing_adapters_in_order(tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    for name in ("medical", "legal", ".trash", "half"):
        adapter(root / name)
    (root / "half" / CONFIG).unlink()
    (root / "notes.txt").write_text("")
    (root / "link").symlink_to("medical")
    (root / "broken").symlink_to("nowhere")
    (root / "out").symlink_to(adapter(tmp_path / "elsewhere"))
    os.mkfifo(adapter(root / "blocked") / "fifo")
    (root / "blocked" / WEIGHTS).unlink()
    (root / "blocked" / "fifo").rename(root / "blocked" / WEIGHTS)
    assert shared(tmp_path).names() == ["legal", "link", "medical"]
    adapter(root / "code")
    assert shared(tmp_path).names() == ["code", "legal", "link", "medical"]


def test_version_folder_below_the_name_is_found_and_listed(tmp_path: Path) -> None:
    for version in ("1", "2"):
        adapter(tmp_path / "medical" / "versions" / version)
    (tmp_path / "medical" / "current").symlink_to("versions/1")
    (tmp_path / "legal").mkdir()
    source = Source.parse(f"{tmp_path}/{{name}}/current")
    assert source.find("medical") == tmp_path / "medical" / "current"
    assert source.find("legal") is None
    assert source.names() == ["medical"]


def kubernetes(root: Path, version: str) -> None:
    """Update a mounted volume as the kubelet does: create a new dated folder, then redirect one link."""
    dated = root / f"..2026_11_23_{version}"
    adapter(dated / "medical", version.encode())
    new_link = root / "..data_tmp"
    new_link.symlink_to(dated.name)
    new_link.rename(root / "..data")
    if not (root / "medical").exists():
        (root / "medical").symlink_to("..data/medical")


def test_update_of_a_kubernetes_volume_changes_the_signature(tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    kubernetes(root, "a")
    folder = shared(tmp_path).find("medical")
    assert folder is not None and folder == root / "medical"
    assert shared(tmp_path).names() == ["medical"]
    before = signature(folder)
    kubernetes(root, "b")
    assert (folder / WEIGHTS).read_bytes() == b"b"
    assert signature(folder) != before


def test_root_can_be_a_link(tmp_path: Path) -> None:
    adapter(tmp_path / ".worktrees" / "4d7a" / "medical")
    (tmp_path / "adapters").symlink_to(".worktrees/4d7a")
    assert shared(tmp_path).find("medical") == tmp_path / "adapters" / "medical"


def test_root_link_that_is_redirected_repeatedly_always_finds_the_adapter(tmp_path: Path) -> None:
    for version in ("a", "b"):
        adapter(tmp_path / version / "medical")
    (tmp_path / "adapters").symlink_to("a")
    writer = os.fork()
    if writer == 0:
        for number in range(1500):
            (tmp_path / "new-link").symlink_to("ab"[number % 2])
            (tmp_path / "new-link").rename(tmp_path / "adapters")
        os._exit(0)
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        assert shared(tmp_path).find("medical") is not None


@pytest.mark.parametrize("target", ["../elsewhere", "/etc", "../adapters-of-others", "../../../../../../etc"])
def test_folder_link_outside_of_the_source_is_refused(tmp_path: Path, target: str) -> None:
    for name in ("elsewhere", "adapters-of-others"):
        adapter(tmp_path / name)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "medical").symlink_to(target)
    with pytest.raises(
        NotAllowedError, match=r"/adapters/medical links to /.*, outside of /.*/adapters; copy the adapter into"
    ):
        shared(tmp_path).find("medical")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("target", ["secret", "missing"])
def test_file_link_outside_of_the_source_is_refused(tmp_path: Path, file: str, target: str) -> None:
    folder = adapter(tmp_path / "adapters" / "medical")
    (tmp_path / "secret").write_text("secret")
    (folder / file).unlink()
    (folder / file).symlink_to(tmp_path / target)
    with pytest.raises(NotAllowedError, match=rf"/medical/{file} links to /.*/{target}, outside of "):
        shared(tmp_path).find("medical")


def test_tenant_folder_link_outside_of_the_source_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "elsewhere" / "medical")
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "acme").symlink_to("../elsewhere")
    with pytest.raises(NotAllowedError, match="links to"):
        Source.parse(f"{tmp_path}/adapters/{{tenant}}/{{name}}").find("medical", "acme")


def test_files_can_be_links_inside_of_the_source(tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    folder = adapter(root / "medical")
    (root / ".blobs").mkdir()
    (folder / WEIGHTS).rename(root / ".blobs" / "4d7a")
    (folder / WEIGHTS).symlink_to("../.blobs/4d7a")
    assert shared(tmp_path).find("medical") == folder


def test_circular_link_finds_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "medical").symlink_to("medical")
    assert shared(tmp_path).find("medical") is None


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder"])
def test_fifo_socket_or_folder_in_place_of_the_weights_is_refused(tmp_path: Path, kind: str) -> None:
    weights = adapter(tmp_path / "adapters" / "medical") / WEIGHTS
    weights.unlink()
    if kind == "fifo":
        os.mkfifo(weights)
    elif kind == "folder":
        weights.mkdir()
    else:
        os.mknod(weights, stat.S_IFSOCK | 0o600)
    with pytest.raises(NotAllowedError, match=f"/medical/{WEIGHTS} is not a regular file; replace it by"):
        shared(tmp_path).find("medical")


def test_unreadable_folder_raises_permission_error(tmp_path: Path) -> None:
    adapter(tmp_path / "adapters" / "medical")
    (tmp_path / "adapters").chmod(0)
    try:
        if os.access(tmp_path / "adapters", os.X_OK):
            pytest.skip("root can read every folder")
        with pytest.raises(PermissionError):
            shared(tmp_path).find("medical")
        with pytest.raises(PermissionError):
            signature(tmp_path / "adapters" / "medical")
        assert shared(tmp_path).names() == []
    finally:
        (tmp_path / "adapters").chmod(0o700)


def test_signature_does_not_change_without_writes(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "medical")
    before = signature(folder)
    (folder / WEIGHTS).read_bytes()
    (folder / "notes.txt").write_text("")
    assert before is not None
    assert signature(folder) == before
    assert hash(signature(folder)) == hash(before)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("change", ["overwritten", "replaced", "appended", "touched", "mtime restored"])
def test_signature_differs_after_every_change(tmp_path: Path, file: str, change: str) -> None:
    folder = adapter(tmp_path / "medical")
    before = signature(folder)
    old = (folder / file).stat()
    content = (folder / file).read_bytes()
    time.sleep(0.02)
    if change == "replaced":
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").rename(folder / file)
    elif change == "touched":
        (folder / file).touch()
    else:
        (folder / file).write_bytes(content + b"more" if change == "appended" else content[::-1])
        if change == "mtime restored":
            os.utime(folder / file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert signature(folder) != before


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_incomplete_adapter_has_no_signature(tmp_path: Path, file: str) -> None:
    folder = adapter(tmp_path / "medical")
    (folder / file).unlink()
    assert signature(folder) is None
    assert signature(tmp_path / "nowhere") is None


@pytest.mark.parametrize("mtime", [0, 4_000_000_000])
def test_changed_at_ignores_the_files_mtime(tmp_path: Path, mtime: int) -> None:
    before = time.time()
    folder = adapter(tmp_path / "medical")
    os.utime(folder / WEIGHTS, (mtime, mtime))
    current = signature(folder)
    assert current is not None
    assert before - 0.1 < current.changed_at < time.time() + 0.1


def test_tenant_cannot_link_to_another_tenants_adapter(tmp_path: Path) -> None:
    for tenant in ("acme", "other"):
        (tmp_path / tenant / "own").mkdir(parents=True)
    (tmp_path / "acme" / "theirs").symlink_to("../other/own")
    (tmp_path / "acme" / "mine").symlink_to("own")
    source = Source.parse(f"{tmp_path}/{{tenant}}/{{name}}")
    assert source.find("own", "acme") is not None and source.find("mine", "acme") is not None
    with pytest.raises(NotAllowedError, match=r"links to .*/other/own, outside of .*/acme;"):
        source.find("theirs", "acme")
