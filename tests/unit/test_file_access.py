"""Files and folders that another user can change are not trusted; the permissions of containers are."""

import grp
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_lora_router import file_access
from vllm_lora_router.file_access import check_trusted

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can change the owner of a file")
OTHER = 12345  # a user and a group without a name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "parent" / "folder"
    folder.mkdir(parents=True)
    return folder


def shared_group() -> int:
    """Return a group with members besides this user and root."""
    return next(group.gr_gid for group in grp.getgrall() if file_access._has_other_members(group.gr_gid))


Change = Callable[[Path], None]


def change(*, mode: int | None = None, owner: int = -1, group: int = -1) -> Change:
    def apply(path: Path) -> None:
        os.chown(path, owner, group)
        if mode is not None:
            path.chmod(mode)

    return apply


@pytest.mark.parametrize(
    "apply",
    [
        change(mode=0o700),
        change(mode=0o755),
        change(mode=0o1777),
        change(mode=0o775, group=0),
    ],
    ids=["private", "readable", "sticky", "writable by the group root"],
)
def test_permissions_that_only_this_user_and_root_can_write_with_are_trusted(folder: Path, apply: Change) -> None:
    apply(folder)
    check_trusted(folder)
    apply(folder.parent)
    check_trusted(folder)


def test_what_every_user_can_write_is_refused_with_the_remedy(folder: Path) -> None:
    file = folder / "file"
    file.write_text("")
    for path, checked in ((file, file), (folder, file), (folder, folder), (folder.parent, folder)):
        before = path.stat().st_mode
        path.chmod(0o777)
        with pytest.raises(PermissionError, match=re.escape(f"every user can change {path}; run `chmod go-w {path}`")):
            check_trusted(checked)
        path.chmod(before)
        check_trusted(checked)


@needs_root
def test_another_owner_or_a_group_with_other_members_is_refused(folder: Path) -> None:
    change(owner=OTHER, mode=0o700)(folder)
    with pytest.raises(PermissionError, match=rf"belongs to another user \(uid {OTHER}\); run `chown 0 "):
        check_trusted(folder)
    for group in (shared_group(), OTHER):
        change(owner=0, group=group, mode=0o770)(folder)
        with pytest.raises(PermissionError, match=rf"the group with gid {group} can change "):
            check_trusted(folder)
        change(mode=0o750)(folder)
        check_trusted(folder)


@needs_root
def test_group_of_a_kubernetes_volume_is_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes makes a volume writable for `fsGroup`, which is a group of the process and has no name."""
    change(group=OTHER, mode=0o2770)(folder)
    monkeypatch.setattr(os, "getgroups", lambda: [OTHER])
    check_trusted(folder)


def test_volume_that_everyone_may_write_is_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes mounts an emptyDir with mode 0777, also at /tmp."""
    folder.parent.chmod(0o777)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder.parent)
    if os.getuid() == 0:
        check_trusted(folder)


@needs_root
def test_files_of_the_group_root_are_trusted_by_an_arbitrary_user_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenShift runs a container with a user id that owns no file of its image, in the group root."""
    change(owner=1001, group=0, mode=0o775)(folder)
    with pytest.raises(PermissionError):
        check_trusted(folder)
    monkeypatch.setattr(os, "getuid", lambda: 1000650000)
    check_trusted(folder)
