"""Ids that nobody can guess."""

import os

AT_ONCE = 64  # that are drawn together: a system call for each would cost as much as all else of a small request's edit
_LENGTH = 32  # hex digits

_left: list[str] = []
os.register_at_fork(after_in_child=_left.clear)  # two processes must not draw the same


def new_id() -> str:
    """32 random hex digits, as many as in a UUID; from any thread."""
    while True:
        try:
            return _left.pop()
        except IndexError:
            drawn = os.urandom(AT_ONCE * _LENGTH // 2).hex()
            _left.extend(drawn[at : at + _LENGTH] for at in range(0, len(drawn), _LENGTH))
