"""Random ids that cannot be guessed, and the check of ids that clients choose."""

import os
import re

BATCH_SIZE = (
    64  # ids generated together: a system call for each would cost as much as the rest of a small request's edit
)
_LENGTH = 32  # hex digits
MAX_CLIENT_ID_LENGTH = 128
_CLIENT_ID = re.compile(f"[!-~]{{1,{MAX_CLIENT_ID_LENGTH}}}")

_unused: list[str] = []
os.register_at_fork(after_in_child=_unused.clear)  # parent and child must not use the same ids


def new_id() -> str:
    """Return 32 random hex digits, as many as in a UUID. Thread-safe."""
    while True:
        try:
            return _unused.pop()
        except IndexError:
            digits = os.urandom(BATCH_SIZE * _LENGTH // 2).hex()
            _unused.extend(digits[start : start + _LENGTH] for start in range(0, len(digits), _LENGTH))


def is_usable_id(text: str) -> bool:
    """Return whether an id that a client chose can be kept: at most 128 printable ASCII characters without spaces."""
    return _CLIENT_ID.fullmatch(text) is not None
