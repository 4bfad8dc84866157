"""Votes of the API-server processes of one server on a new configuration, and the configuration in effect."""

import hashlib
import os
import time
from contextlib import suppress
from os.path import samestat
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct, json
from msgspec.structs import replace

from vllm_lora_router.coordination import liveness
from vllm_lora_router.coordination.run_directory import RunDirectory

LOCK = "configuration"
KEPT_REFUSALS = 32  # refused proposals that are kept for processes that have not read them yet


class ProcessVote(Struct, frozen=True):
    """The configuration that one process runs, and its vote on a proposal."""

    generation: int
    sha256: str
    proposal: int = 0  # the number of the proposal that it votes on
    problems: tuple[str, ...] = ()  # empty: the process has prepared the proposal and accepts it
    not_applied: str | None = None  # why the process has not put the configuration in effect that was agreed on


class Proposal(Struct, frozen=True):
    """A configuration file's content that is pending, in effect or refused."""

    number: int
    sha256: str
    content: bytes
    since_s: float = 0.0  # time.monotonic(), which all processes of a machine share
    generation: int = 0  # its generation once it takes effect; 0 while pending, and if refused
    problems: tuple[str, ...] = ()  # why it was refused
    ended_s: float = 0.0  # time.time()


class VoteState(Struct, frozen=True):
    """The state that all processes share."""

    in_effect: Proposal
    seen: str  # SHA-256 of the file content that was handled last, whether it took effect or was refused
    proposed: int = 0  # the number of the last proposal
    pending: Proposal | None = None
    refused: tuple[Proposal, ...] = ()  # with empty contents


class ConfigVotes:
    """One process's access to the votes, which are files.

    Each file is replaced as a whole, so a process that is killed leaves no truncated file.
    """

    def __init__(self, run: RunDirectory, process: str, limit_s: float) -> None:
        """
        Args:
            process: a name that tells the processes of the server apart.
            limit_s: a proposal is refused if a process has not voted after this many seconds.
        """
        self._run, self.process, self._limit_s = run, process, limit_s
        folder = run.folder / "configuration"
        self._file, self._alive, self._votes = folder / "state.json", folder / "alive", folder / "votes"
        self._descriptor = -1  # of the file in `alive`, whose lock shows that this process is alive
        self._decoded: tuple[BinaryIO, VoteState] | None = None  # the state, and the open file that it was decoded from

    def join(self, content: bytes) -> VoteState:
        """Join the vote. Return the state of the other processes, or one with `content` in effect if there are none."""
        with self._run.locked(LOCK):
            for folder in (self._alive, self._votes):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            others = self._living()
            for file in self._alive.iterdir():
                if file.name not in others:
                    file.unlink()
            first = Proposal(0, digest(content), content, generation=1)
            state = self._state() if others else self._write(VoteState(first, first.sha256))
            self.publish(ProcessVote(state.in_effect.generation, state.in_effect.sha256))
            self._descriptor = liveness.hold(self._alive / self.process)
            return state

    def leave(self) -> None:
        """Leave the vote: later proposals do not wait for this process."""
        if self._descriptor >= 0:
            (self._alive / self.process).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
        self._close()

    def publish(self, vote: ProcessVote) -> None:
        """Publish this process's vote, which replaces its earlier one."""
        self._replace(self._votes / self.process, json.encode(vote))

    def propose(self, content: bytes, *, requested: bool) -> Proposal:
        """Propose a content.

        A content that was refused is not proposed again until the file has had another content.

        Args:
            requested: a client requested the reload, so propose the content even if it was refused before.

        Returns:
            The pending proposal, which may be of another content; or the one in effect if there is nothing to do.
        """
        sha256 = digest(content)
        with self._run.locked(LOCK):
            state = self._state()
            if state.pending is None and (sha256 == state.in_effect.sha256 or (sha256 == state.seen and not requested)):
                return self._write(replace(state, seen=sha256)).in_effect
            if state.pending is None:
                pending = Proposal(state.proposed + 1, sha256, content, since_s=time.monotonic())
                self._write(replace(state, seen=sha256, proposed=pending.number, pending=pending))
                return pending
            return state.pending

    def poll(self) -> tuple[VoteState, dict[str, ProcessVote]]:
        """Decide the pending proposal if possible. Return the state, and the votes of all living processes by name."""
        if (state := self._state()).pending is not None:
            with self._run.locked(LOCK):
                if (state := self._state()).pending is not None:
                    state = self._decide(state, state.pending, self._living())
        return state, self._living()

    def _decide(self, state: VoteState, pending: Proposal, processes: dict[str, ProcessVote]) -> VoteState:
        votes = {name: process.problems for name, process in processes.items() if process.proposal == pending.number}
        missing = sorted(processes.keys() - votes.keys())
        problems = next(filter(None, votes.values()), ())
        if not problems and time.monotonic() > pending.since_s + self._limit_s:
            problems = tuple(f"process {name} has not prepared it within {self._limit_s:g} s" for name in missing)
        if problems:
            refused = replace(pending, content=b"", problems=problems, ended_s=time.time())
            return self._write(replace(state, pending=None, refused=(*state.refused, refused)[-KEPT_REFUSALS:]))
        if not missing:
            accepted = replace(pending, generation=state.in_effect.generation + 1, ended_s=time.time())
            return self._write(replace(state, pending=None, in_effect=accepted))
        return state

    def _living(self) -> dict[str, ProcessVote]:
        votes = (self._votes / file.name for file in self._alive.iterdir() if liveness.is_held(file))
        return {file.name: json.decode(file.read_bytes(), type=ProcessVote) for file in votes}

    def _state(self) -> VoteState:
        """Return the state. It contains a whole configuration, so the file is decoded only when it was replaced."""
        # While the decoded file is open, no other file has its inode.
        if self._decoded is None or not samestat(self._file.stat(), os.fstat(self._decoded[0].fileno())):
            opened = self._file.open("rb")
            state = json.decode(opened.read(), type=VoteState)
            self._close()
            self._decoded = opened, state
        return self._decoded[1]

    def _close(self) -> None:
        if self._decoded is not None:
            self._decoded[0].close()
            self._decoded = None

    def _write(self, state: VoteState) -> VoteState:
        self._replace(self._file, json.encode(state))
        return state

    def _replace(self, file: Path, content: bytes) -> None:
        new = file.with_name(f".{file.name}.{self.process}")
        try:
            new.write_bytes(content)
            new.replace(file)
        except OSError:
            with suppress(OSError):
                new.unlink()  # the part that was written uses space on a full disk
            raise


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content` in hex."""
    return hashlib.sha256(content).hexdigest()
