"""Which folder an adapter's name finds, and what nobody gets by a name or a link."""

import os
import stat
import time
from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.sources import NotAllowed, Source, signature

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
def test_a_folder_means_the_folders_in_it(text: str) -> None:
    source = Source.parse(text)
    assert (source.root.name, source.parts, source.by_tenant, source.immutable) == (
        "adapters",
        ("{name}",),
        False,
        False,
    )


def test_a_template_says_where_name_and_tenant_stand() -> None:
    source = Source.parse("/srv/lora/{tenant}/adapters/{name}/current", immutable=True)
    assert source.root == Path("/srv/lora")
    assert source.parts == ("{tenant}", "adapters", "{name}", "current")
    assert source.by_tenant
    assert source.immutable
    assert str(source) == "/srv/lora/{tenant}/adapters/{name}/current"


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("adapters", "/etc/router/adapters/{name}"),
        ("../{tenant}/{name}", "/etc/router/../{tenant}/{name}"),
        (".", "/etc/router/{name}"),
        ("{name}", "/etc/router/{name}"),
        ("/adapters", "/adapters/{name}"),
    ],
)
def test_a_relative_template_begins_at_the_folder_it_is_written_in(text: str, means: str) -> None:
    assert str(Source.parse(text, base=Path("/etc/router"))) == means


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "source '' is empty; write a folder"),
        ("  ", "is empty; write a folder"),
        ("/adapters/{tenant}", "must say {name} once, such as /adapters/{tenant}/{name}"),
        ("/adapters/{name}/{name}", "says {name} twice"),
        ("/adapters/{tenant}/{tenant}/{name}", "says {tenant} twice"),
        ("/adapters/lora-{name}", "has 'lora-{name}'; between two slashes stands {name}, {tenant} or a name without"),
        ("/adapters/{user}/{name}", "has '{user}'; between two slashes stands"),
        ("/adapters/{}", "has '{}'; between two slashes stands"),
        ("/adapters/{name}}", "has '{name}}'; between two slashes stands"),
        ("/adapters/{name}/../other", "has '..' after a placeholder; write the path without it"),
        ("/{name}", "begins with no folder, so that it means the whole disk; write one, such as /adapters/{name}"),
        ("/", "begins with no folder"),
        ("/adapters\0/{name}", "contains a NUL character; take it out"),
        ("adapters", "is relative; write the whole path, from '/' on"),
    ],
)
def test_a_template_that_means_no_place_is_refused_with_the_way_out(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^source '") as refused:
        Source.parse(text)
    assert said in str(refused.value)


def test_an_adapter_is_found_by_its_name(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapters" / "medical")
    assert shared(tmp_path).find("medical") == folder
    assert shared(tmp_path).find("legal") is None


def test_a_source_whose_folder_is_not_there_yet_has_nothing(tmp_path: Path) -> None:
    assert shared(tmp_path).find("medical") is None
    assert shared(tmp_path).names() == []


def test_a_file_is_no_adapter(tmp_path: Path) -> None:
    adapter(tmp_path / "adapters" / "medical")
    (tmp_path / "adapters" / "readme").write_text("")
    assert shared(tmp_path).find("readme") is None
    assert Source.parse(f"{tmp_path}/adapters/{{name}}/current").find("readme") is None


@pytest.mark.parametrize("name", ["~", "~root", "$HOME", "a b", "médecine", "medical.v2", "a" * 255, "{name}", "*"])
def test_a_name_is_taken_as_it_is_written(tmp_path: Path, name: str) -> None:
    folder = adapter(tmp_path / "adapters" / name)
    assert shared(tmp_path).find(name) == folder
    assert shared(tmp_path).names() == [name]


@pytest.mark.parametrize(
    ("name", "said"),
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
def test_what_is_no_plain_file_name_is_refused_as_a_name_and_as_a_tenant(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(NotAllowed, match=said):
        shared(tmp_path).find(name)
    by_tenant = Source.parse(f"{tmp_path}/{{tenant}}/{{name}}")
    with pytest.raises(NotAllowed, match=said.replace("adapter name", "tenant")):
        by_tenant.find("medical", name)
    assert by_tenant.names(name) == []


def test_a_refused_name_is_not_repeated_at_length(tmp_path: Path) -> None:
    with pytest.raises(NotAllowed) as refused:
        shared(tmp_path).find("a" * 1_000_000)
    assert len(str(refused.value)) < 1000


def test_every_tenant_has_its_own(tmp_path: Path) -> None:
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
def test_the_tenants_that_have_an_adapter_of_a_name_are_known(tmp_path: Path, template: str) -> None:
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


def test_of_a_shared_source_no_tenant_is_the_owner(tmp_path: Path) -> None:
    adapter(tmp_path / "adapters" / "medical")
    assert list(shared(tmp_path).tenants("medical")) == []


def test_what_a_tenant_only_links_to_is_not_its_own(tmp_path: Path) -> None:
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
def test_nobody_has_an_adapter_of_what_is_no_plain_file_name(tmp_path: Path, name: str) -> None:
    for folder in ("acme/medical", "acme/.hidden", "acme/deep/medical", "acme/a\nb"):
        adapter(tmp_path / folder)
    (tmp_path / "acme" / CONFIG).write_text("{}")
    assert list(Source.parse(f"{tmp_path}/{{tenant}}/{{name}}").tenants(name)) == []


def test_a_shared_source_takes_no_notice_of_the_tenant(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapters" / "medical")
    assert shared(tmp_path).find("medical", "auth0|12/34") == folder
    assert shared(tmp_path).names("auth0|12/34") == ["medical"]


def test_what_is_there_now_is_listed_in_order(tmp_path: Path) -> None:
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


def test_a_version_below_the_name_is_found_and_listed(tmp_path: Path) -> None:
    for version in ("1", "2"):
        adapter(tmp_path / "medical" / "versions" / version)
    (tmp_path / "medical" / "current").symlink_to("versions/1")
    (tmp_path / "legal").mkdir()
    source = Source.parse(f"{tmp_path}/{{name}}/current")
    found = source.find("medical")
    assert found == tmp_path / "medical" / "current"
    assert source.find("legal") is None
    assert source.names() == ["medical"]


def kubernetes(root: Path, version: str) -> None:
    """What the kubelet does to a mounted volume: a new dated folder, then one link is turned."""
    dated = root / f"..2026_11_23_{version}"
    adapter(dated / "medical", version.encode())
    turning = root / "..data_tmp"
    turning.symlink_to(dated.name)
    turning.rename(root / "..data")
    if not (root / "medical").exists():
        (root / "medical").symlink_to("..data/medical")


def test_an_adapter_in_a_kubernetes_volume_is_found_and_its_swap_is_seen(tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    kubernetes(root, "a")
    folder = shared(tmp_path).find("medical")
    assert folder == root / "medical"
    assert shared(tmp_path).names() == ["medical"]
    before = signature(folder)
    kubernetes(root, "b")
    assert (folder / WEIGHTS).read_bytes() == b"b"
    assert signature(folder) != before


def test_the_root_may_itself_be_a_link(tmp_path: Path) -> None:
    adapter(tmp_path / ".worktrees" / "4d7a" / "medical")
    (tmp_path / "adapters").symlink_to(".worktrees/4d7a")
    assert shared(tmp_path).find("medical") == tmp_path / "adapters" / "medical"


def test_a_root_that_is_turned_while_it_is_looked_at_gives_one_or_the_other(tmp_path: Path) -> None:
    for version in ("a", "b"):
        adapter(tmp_path / version / "medical")
    (tmp_path / "adapters").symlink_to("a")
    turner = os.fork()
    if turner == 0:
        for number in range(1500):
            (tmp_path / "turning").symlink_to("ab"[number % 2])
            (tmp_path / "turning").rename(tmp_path / "adapters")
        os._exit(0)
    while os.waitpid(turner, os.WNOHANG) == (0, 0):
        assert shared(tmp_path).find("medical") is not None


@pytest.mark.parametrize("target", ["../elsewhere", "/etc", "../adapters-of-others", "../../../../../../etc"])
def test_a_folder_that_leads_out_of_the_source_is_refused(tmp_path: Path, target: str) -> None:
    for name in ("elsewhere", "adapters-of-others"):
        adapter(tmp_path / name)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "medical").symlink_to(target)
    with pytest.raises(NotAllowed, match=r"/adapters/medical leads to /.*, out of /.*/adapters; copy the adapter into"):
        shared(tmp_path).find("medical")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("target", ["secret", "not there"])
def test_a_file_that_leads_out_of_the_source_is_refused(tmp_path: Path, file: str, target: str) -> None:
    folder = adapter(tmp_path / "adapters" / "medical")
    (tmp_path / "secret").write_text("secret")
    (folder / file).unlink()
    (folder / file).symlink_to(tmp_path / target)
    with pytest.raises(NotAllowed, match=rf"/medical/{file} leads to /.*/{target}, out of "):
        shared(tmp_path).find("medical")


def test_a_tenant_s_folder_that_leads_out_of_the_source_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "elsewhere" / "medical")
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "acme").symlink_to("../elsewhere")
    with pytest.raises(NotAllowed, match="leads to"):
        Source.parse(f"{tmp_path}/adapters/{{tenant}}/{{name}}").find("medical", "acme")


def test_files_may_be_links_inside_the_source(tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    folder = adapter(root / "medical")
    (root / ".blobs").mkdir()
    (folder / WEIGHTS).rename(root / ".blobs" / "4d7a")
    (folder / WEIGHTS).symlink_to("../.blobs/4d7a")
    assert shared(tmp_path).find("medical") == folder


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "medical").symlink_to("medical")
    assert shared(tmp_path).find("medical") is None


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder"])
def test_what_is_no_file_in_place_of_the_weights_is_refused(tmp_path: Path, kind: str) -> None:
    weights = adapter(tmp_path / "adapters" / "medical") / WEIGHTS
    weights.unlink()
    if kind == "fifo":
        os.mkfifo(weights)
    elif kind == "folder":
        weights.mkdir()
    else:
        os.mknod(weights, stat.S_IFSOCK | 0o600)
    with pytest.raises(NotAllowed, match=f"/medical/{WEIGHTS} is not a regular file; put the adapter's own there"):
        shared(tmp_path).find("medical")


def test_a_place_that_cannot_be_looked_at_is_not_said_to_be_empty(tmp_path: Path) -> None:
    adapter(tmp_path / "adapters" / "medical")
    (tmp_path / "adapters").chmod(0)
    try:
        if os.access(tmp_path / "adapters", os.X_OK):
            pytest.skip("root may look at everything")
        with pytest.raises(PermissionError):
            shared(tmp_path).find("medical")
        with pytest.raises(PermissionError):
            signature(tmp_path / "adapters" / "medical")
        assert shared(tmp_path).names() == []
    finally:
        (tmp_path / "adapters").chmod(0o700)


def test_the_signature_is_the_same_while_nobody_writes(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "medical")
    before = signature(folder)
    (folder / WEIGHTS).read_bytes()
    (folder / "notes.txt").write_text("")
    assert before is not None
    assert signature(folder) == before
    assert hash(signature(folder)) == hash(before)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("change", ["overwritten", "replaced", "appended", "touched", "as old as before"])
def test_the_signature_is_another_after_any_change(tmp_path: Path, file: str, change: str) -> None:
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
        if change == "as old as before":
            os.utime(folder / file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert signature(folder) != before


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_half_an_adapter_has_no_signature(tmp_path: Path, file: str) -> None:
    folder = adapter(tmp_path / "medical")
    (folder / file).unlink()
    assert signature(folder) is None
    assert signature(tmp_path / "nowhere") is None


@pytest.mark.parametrize("dated", [0, 4_000_000_000])
def test_a_change_is_dated_by_when_it_happened_whatever_date_was_given_to_the_file(tmp_path: Path, dated: int) -> None:
    before = time.time()
    folder = adapter(tmp_path / "medical")
    os.utime(folder / WEIGHTS, (dated, dated))
    found = signature(folder)
    assert found is not None
    assert before - 0.1 < found.changed_at < time.time() + 0.1


def test_a_tenant_cannot_link_to_its_neighbours_adapter(tmp_path: Path) -> None:
    for tenant in ("acme", "other"):
        (tmp_path / tenant / "own").mkdir(parents=True)
    (tmp_path / "acme" / "theirs").symlink_to("../other/own")
    (tmp_path / "acme" / "mine").symlink_to("own")
    source = Source.parse(f"{tmp_path}/{{tenant}}/{{name}}")
    assert source.find("own", "acme") is not None and source.find("mine", "acme") is not None
    with pytest.raises(NotAllowed, match=r"leads to .*/other/own, out of .*/acme;"):
        source.find("theirs", "acme")
