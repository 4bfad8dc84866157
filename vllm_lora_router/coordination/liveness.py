"""Detect whether a process is alive by a file lock, which the kernel releases when the process ends in any way."""

import fcntl
import os
from pathlib import Path


def hold(file: Path, *, shared: bool = False) -> int:
    """Create `file` if it is missing and lock it; wait while another process holds a lock that conflicts.

    Args:
        shared: several processes may hold the lock at once.

    Returns:
        The descriptor of the file. Closing it releases the lock.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    return descriptor


def is_held(file: Path, *, shared: bool = False) -> bool:
    """Return whether a living process holds the lock on `file`; False if the file is missing.

    A file that cannot be opened or locked for another reason counts as held.

    Args:
        shared: the processes hold a shared lock. The check then takes an exclusive lock for a moment, so call it only
            under another lock: otherwise two processes that check at once see each other. Without `shared` the check
            takes a shared lock, and several processes may check at once.
    """
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if shared else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_only_holder(descriptor: int) -> bool:
    """Return whether no other process holds the shared lock that `hold` returned as `descriptor`.

    The call may release this process's own lock: use it only when the process is about to close the descriptor.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
