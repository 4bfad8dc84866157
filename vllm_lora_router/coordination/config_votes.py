"""What the processes of one server agree on about its configuration: proposals, votes, and what is in force."""

import fcntl
import hashlib
import os
import time
from pathlib import Path

from msgspec import Struct, json
from msgspec.structs import replace

from vllm_lora_router.coordination.run_directory import RunDirectory

LOCK = "configuration"
KEPT = 32  # refusals, for processes that have not seen them yet


class Process(Struct, frozen=True):
    """What one process says of itself."""

    generation: int
    sha256: str
    voted: int = 0  # on which proposal
    problems: tuple[str, ...] = ()  # none: it is prepared


class Proposal(Struct, frozen=True):
    """A content, pending or decided."""

    number: int
    sha256: str
    content: bytes
    since_s: float = 0.0  # time.monotonic(), which all processes of a machine share
    generation: int = 0  # as which it was taken
    problems: tuple[str, ...] = ()  # for which it was refused
    ended_s: float = 0.0  # time.time()


class State(Struct, frozen=True):
    """What all processes go by."""

    in_force: Proposal
    seen: str  # the last content of the file that was dealt with, whatever became of it
    proposed: int = 0  # the last proposal's number
    pending: Proposal | None = None
    refused: tuple[Proposal, ...] = ()  # without their contents


class Agreement:
    """What processes tell each other, in files that are replaced as a whole: a kill leaves none cut off."""

    def __init__(self, run: RunDirectory, process: str, limit_s: float) -> None:
        self._run, self.process, self._limit_s = run, process, limit_s
        folder = run.folder / "configuration"
        self._file, self._alive, self._said = folder / "state.json", folder / "alive", folder / "said"
        self._descriptor = -1  # its lock says that this process lives

    def join(self, content: bytes) -> State:
        with self._run.locked(LOCK):
            for folder in (self._alive, self._said):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            others = self._living()
            for file in self._alive.iterdir():
                if file.name not in others:
                    file.unlink()
            first = Proposal(0, digest(content), content, generation=1)
            state = self._state() if others else self._write(State(first, first.sha256))
            self.say(Process(state.in_force.generation, state.in_force.sha256))
            self._descriptor = os.open(self._alive / self.process, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            return state

    def leave(self) -> None:
        if self._descriptor >= 0:
            (self._alive / self.process).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def say(self, own: Process) -> None:
        self._replace(self._said / self.process, json.encode(own))

    def propose(self, content: bytes, *, asked: bool) -> Proposal:
        """What decides on the content: what is pending, which may be another, or what is in force if nothing is to do.

        Unless somebody asks for it, what was refused comes up again only after the file has had another content.
        """
        sha256 = digest(content)
        with self._run.locked(LOCK):
            state = self._state()
            if state.pending is None and (sha256 == state.in_force.sha256 or (sha256 == state.seen and not asked)):
                return self._write(replace(state, seen=sha256)).in_force
            if state.pending is None:
                pending = Proposal(state.proposed + 1, sha256, content, since_s=time.monotonic())
                self._write(replace(state, seen=sha256, proposed=pending.number, pending=pending))
                return pending
            return state.pending

    def look(self) -> tuple[State, dict[str, Process]]:
        """Decides what can be decided."""
        if (state := self._state()).pending is not None:
            with self._run.locked(LOCK):
                if (state := self._state()).pending is not None:
                    state = self._decide(state, state.pending, self._living())
        return state, self._living()

    def _decide(self, state: State, pending: Proposal, processes: dict[str, Process]) -> State:
        votes = {name: process.problems for name, process in processes.items() if process.voted == pending.number}
        silent = sorted(processes.keys() - votes.keys())
        problems = next(filter(None, votes.values()), ())
        if not problems and time.monotonic() > pending.since_s + self._limit_s:
            problems = tuple(f"process {name} has not prepared it within {self._limit_s:g} s" for name in silent)
        if problems:
            refused = replace(pending, content=b"", problems=problems, ended_s=time.time())
            return self._write(replace(state, pending=None, refused=(*state.refused, refused)[-KEPT:]))
        if not silent:
            taken = replace(pending, generation=state.in_force.generation + 1, ended_s=time.time())
            return self._write(replace(state, pending=None, in_force=taken))
        return state

    def _living(self) -> dict[str, Process]:
        said = (self._said / file.name for file in self._alive.iterdir() if _is_held(file))
        return {file.name: json.decode(file.read_bytes(), type=Process) for file in said}

    def _state(self) -> State:
        return json.decode(self._file.read_bytes(), type=State)

    def _write(self, state: State) -> State:
        self._replace(self._file, json.encode(state))
        return state

    def _replace(self, file: Path, content: bytes) -> None:
        new = file.with_name(f".{file.name}.{self.process}")
        new.write_bytes(content)
        new.replace(file)


def _is_held(file: Path) -> bool:
    """Whether the process lives: the kernel drops its lock when it does not."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look must not see each other's locks
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def digest(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()
