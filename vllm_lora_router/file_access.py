"""Check that no other user can change or replace a file or folder that this process trusts."""

import grp
import os
import pwd
import stat
from pathlib import Path


def check_trusted(path: Path) -> None:
    """Check the owner and the permissions of a file or folder, and the permissions of the folder that contains it.

    These are trusted besides this user: root, and the group root, because containers with an arbitrary user id
    (OpenShift) run in that group.

    Raises:
        PermissionError: another user can change or replace it. The message contains the remedy.
        OSError: it does not exist or cannot be read.
    """
    properties = path.stat()
    is_arbitrary_user = os.getuid() != 0 and os.getgid() == 0
    if properties.st_uid not in (0, os.getuid()) and not (is_arbitrary_user and properties.st_gid == 0):
        raise PermissionError(
            f"{path} belongs to another user (uid {properties.st_uid}); run `chown {os.getuid()} {path}`"
        )
    for place in (path, path.absolute().parent):
        if writers := _other_writers(place):
            raise PermissionError(f"{writers} can change {place}; run `chmod go-w {place}`")


def _other_writers(path: Path) -> str | None:
    """Return who else can change a file or the names in a folder; None if only this user and root can."""
    properties = path.stat()
    if stat.S_ISDIR(properties.st_mode):
        if properties.st_mode & stat.S_ISVTX:
            return None  # as in /tmp, a name belongs to the user that created it
        if properties.st_uid == 0 and path.is_mount():
            return None  # Kubernetes mounts volumes for one pod like this (emptyDir, fsGroup)
    if properties.st_mode & stat.S_IWOTH:
        return "every user"
    if properties.st_mode & stat.S_IWGRP and _has_other_members(properties.st_gid):
        return f"the group with gid {properties.st_gid}"
    return None


def _has_other_members(gid: int) -> bool:
    """Return whether a group has members besides this user and root."""
    if gid == 0:
        return False
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        # Kubernetes' fsGroup has no name, and only the processes of the pod are in it.
        return gid not in (os.getegid(), *os.getgroups())
    members = {*group.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == gid)}
    names = {user.pw_name for user in pwd.getpwall() if user.pw_uid in (0, os.getuid())}
    return not members <= names
