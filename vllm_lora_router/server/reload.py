"""Reload of the configuration file. A new configuration takes effect in all API-server processes or in none."""

import asyncio
import errno
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from msgspec.structs import replace

from vllm_lora_router.config.file_content import read_content
from vllm_lora_router.coordination.config_votes import ConfigVotes, ProcessVote, Proposal
from vllm_lora_router.coordination.repeat import repeat
from vllm_lora_router.coordination.run_directory import RunDirectory, RunDirectoryError
from vllm_lora_router.coordination.shortage import describe

T = TypeVar("T")
R = TypeVar("R")
Outcome = Literal["applied", "unchanged", "refused"]

READ_TIMEOUT_S = 10.0  # a network file system may never answer
ALL_PROCESSES_TIMEOUT_S = 5.0  # how long `reload` waits until every process has applied an accepted configuration
COMMIT_TIMEOUT_S = 30.0  # then a commit counts as failed, and is tried again

logger = logging.getLogger("vllm_lora_router.server")


class NotAppliedError(RuntimeError):
    """The agreed configuration could not be put in effect in this process; the message names both generations."""


class ReloadRefusedError(ValueError):
    """A configuration that cannot be used, with one line per problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class ReloadResult:
    """The outcome of a requested reload."""

    outcome: Outcome
    generation: int  # in effect in this process
    problems: tuple[str, ...] = ()  # why it was refused; for "applied": the processes that have not applied it, and why


class ConfigReloader(Generic[T]):
    """One API-server process's part in watching the file, voting on new contents and applying them.

    If a process is killed, the others complete the proposals that it has made. A process that cannot put an accepted
    configuration in effect tries again until it can, or until the next one is accepted.
    """

    def __init__(
        self,
        run: RunDirectory,
        file: Path,
        prepare: Callable[[bytes], Awaitable[T]],
        commit: Callable[[T, int], Awaitable[None]],
        *,
        on_outcome: Callable[[str], None] = lambda outcome: None,
        process: int | None = None,
        poll_s: float = 0.2,
        watch_s: float = 1.0,
        vote_timeout_s: float = 120.0,
    ) -> None:
        """Create an inactive reloader; `join` and `start` activate it.

        Args:
            run: the directory that all processes of the server share.
            file: the configuration file, not resolved: the resolved path would miss a symbolic link that is swapped.
            prepare: builds a configuration from the file's content, off the event loop, without changing the one in
                effect. An exception refuses the content for all processes. Calls never overlap. The call is cancelled
                when another process refuses the content.
            commit: puts a prepared configuration in effect under its generation's number. It must be fast. After an
                exception or `COMMIT_TIMEOUT_S` it is called again, so it must work from any state that it leaves.
            on_outcome: called with "applied" or "refused" once per proposal, when the processes have decided on it.
            process: identifies this process (default: the process id).
            poll_s: the interval in seconds at which the votes of the other processes are read.
            watch_s: the interval in seconds at which the file is checked. A change is proposed when two checks in
                succession find the same content, because the file may be only partly written at the first.
            vote_timeout_s: the time in seconds after which a proposal is refused if a process has not voted.
        """
        self._folder = run.folder
        self._file, self._prepare, self._commit, self._on_outcome = file, prepare, commit, on_outcome
        self._poll_s, self._watch_s = poll_s, watch_s
        self._votes = ConfigVotes(run, str(os.getpid() if process is None else process), vote_timeout_s)
        # Separate threads: neither an unreadable configuration file nor a busy default executor may delay the votes.
        self._vote_thread, self._file_thread = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._last_prepared = self._last_decided = 0  # numbers of proposals
        self._preparing: asyncio.Task[T] | None = None
        # Held by `prepare`, which may hold its memory for a while after it was cancelled, and by `commit`.
        self._prepare_lock = asyncio.Lock()
        self._accepted: tuple[Proposal, T] | None = None  # not yet in effect in this process
        self._has_accepted = asyncio.Event()
        self._last_check: object = None  # the file's signature and content at the last check
        self._handled_signature: object = None  # the file's signature when its content was last proposed or reported

    @property
    def generation(self) -> int:
        """The number of the configuration in effect in this process."""
        return self._vote.generation

    async def join(self, content: bytes) -> bytes:
        """Return the content to start with.

        This is `content` as generation 1, or the content in effect in processes that are running already. From now on
        proposals need the vote of this process, so they wait until it has started.
        """
        self._state = await self._on_vote_thread(lambda: self._votes.join(content))
        self._vote = self._published_vote = ProcessVote(self._state.in_effect.generation, self._state.in_effect.sha256)
        self._processes = {self._votes.process: self._vote}
        self._last_prepared = self._last_decided = self._state.proposed - (self._state.pending is not None)
        return self._state.in_effect.content

    def start(self) -> None:
        """Start to follow the votes, to apply accepted configurations and to watch the file."""
        steps = (
            ("following the votes", self._follow),
            ("applying the agreed version", self._apply),
            ("watching the file", self._watch),
        )
        self._tasks = [asyncio.ensure_future(repeat(f"configuration: {task}", step, logger)) for task, step in steps]

    async def stop(self) -> None:
        """Leave the vote. The other processes no longer wait for this one."""
        tasks, self._tasks = [*self._tasks, *([self._preparing] if self._preparing else [])], []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        await self._on_vote_thread(self._votes.leave)
        self._vote_thread.shutdown(wait=False)
        self._file_thread.shutdown(wait=False, cancel_futures=True)

    async def reload(self) -> ReloadResult:
        """Propose the file's current content, even if it was refused before, and wait for the outcome."""
        while True:
            try:
                content = await self._read(partial(read_content, self._file))
                proposal = await self._on_vote_thread(partial(self._votes.propose, content, requested=True))
            except (OSError, RunDirectoryError) as error:
                return ReloadResult("refused", self.generation, (str(error),))
            self._wake.set()
            while self._last_decided < proposal.number:
                if not self._tasks:
                    return ReloadResult("refused", self.generation, ("this process is starting or stopping",))
                await asyncio.sleep(self._poll_s / 4)
            if proposal.generation:
                was_behind = self.generation < proposal.generation
                problems = await self._processes_behind()
                return ReloadResult("applied" if was_behind or problems else "unchanged", self.generation, problems)
            if proposal.content == content:  # otherwise another proposal was pending: propose ours in the next round
                refusals = (refused.problems for refused in self._state.refused if refused.number == proposal.number)
                if problems := next(refusals, None):
                    return ReloadResult("refused", self.generation, problems)
                behind = await self._processes_behind()  # also waits for this process
                return ReloadResult("applied", self.generation, behind)

    def status(self) -> dict[str, Any]:
        """Return the configuration in effect in this process and in the others, for JSON."""
        state = "preparing" if self._state.pending else "in-effect"
        refused = self._state.refused[-1] if self._state.refused else None
        return {
            "generation": self.generation,
            "agreed_generation": self._state.in_effect.generation,
            "version": self._vote.sha256[:8],
            "file": self._file.name,
            "state": "behind" if self.generation < self._state.in_effect.generation else state,
            "problem": self._vote.not_applied,
            "refused": refused
            and {
                "version": refused.sha256[:8],
                "problems": list(refused.problems),
                "at": datetime.fromtimestamp(refused.ended_s, UTC).isoformat(timespec="seconds"),
            },
            # The other processes as of the last poll, and this one's current state.
            "processes": {
                name: process.generation
                for name, process in sorted({**self._processes, self._votes.process: self._vote}.items())
            },
        }

    async def _follow(self) -> None:
        """Publish this process's vote, read the others', and act on proposals."""
        self._wake.clear()
        if (vote := self._vote) != self._published_vote:
            await self._on_vote_thread(lambda: self._votes.publish(vote))
            self._published_vote = vote
        self._state, self._processes = await self._on_vote_thread(self._votes.poll)
        for decided in sorted((*self._state.refused, self._state.in_effect), key=lambda decided: decided.number):
            if decided.number > self._last_decided:
                self._conclude(decided)
        if (pending := self._state.pending) is not None and pending.number > self._last_prepared:
            self._last_prepared = pending.number
            self._preparing = asyncio.ensure_future(self._build(pending.content))
            self._preparing.add_done_callback(lambda task: self._cast_vote(pending.number, task))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await self._wake.wait()

    async def _build(self, content: bytes) -> T:
        async with self._prepare_lock:
            return await self._prepare(content)

    def _cast_vote(self, number: int, task: "asyncio.Task[T]") -> None:
        problems: tuple[str, ...] = ()
        error = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
        if error is not None:
            problems = (_one_line(error),)
            if isinstance(error, ReloadRefusedError):
                problems = error.problems or problems
            elif number > self._last_decided:
                logger.error("configuration: unexpected error while preparing a new version", exc_info=error)
        self._vote = replace(self._vote, proposal=number, problems=problems)
        self._wake.set()

    def _conclude(self, decided: Proposal) -> None:
        task, version = self._preparing, decided.sha256[:8]
        if not decided.generation:
            if task is not None:
                task.cancel()
                self._preparing = None if task.done() else task
            logger.warning(
                "configuration: version %s is refused; generation %d stays in effect:\n%s",
                version,
                self.generation,
                "\n".join(decided.problems),
            )
        else:
            self._preparing = None
            assert task is not None  # no proposal is accepted without this process's vote
            self._accepted = decided, task.result()
            self._has_accepted.set()
        self._last_decided = decided.number
        self._wake.set()  # publish the vote at once
        self._on_outcome("applied" if decided.generation else "refused")

    async def _apply(self) -> None:
        """Wait for an accepted configuration and put it in effect in this process.

        Raises:
            NotAppliedError: it failed. The next call tries again, or puts a newer one in effect.
        """
        await self._has_accepted.wait()
        async with self._prepare_lock:
            assert self._accepted is not None
            accepted, prepared = self._accepted
            limit = asyncio.timeout(COMMIT_TIMEOUT_S)
            try:
                async with limit:
                    await self._commit(prepared, accepted.generation)
            except Exception as error:
                cause = f"no result within {COMMIT_TIMEOUT_S:g} s" if limit.expired() else _one_line(error)
                self._vote = replace(self._vote, not_applied=cause)
                self._wake.set()
                raise NotAppliedError(
                    f"generation {accepted.generation} (version {accepted.sha256[:8]}) is not in effect in this "
                    f"process: {cause}; generation {self.generation} stays in effect"
                ) from error
            if self._accepted[0] is accepted:
                self._accepted = None
                self._has_accepted.clear()
        self._vote = replace(self._vote, generation=accepted.generation, sha256=accepted.sha256, not_applied=None)
        logger.info("configuration: generation %d (version %s) is in effect", accepted.generation, accepted.sha256[:8])
        self._wake.set()  # publish it at once

    async def _processes_behind(self) -> tuple[str, ...]:
        """Wait until all processes have applied the configuration in effect; return those that have not, as text."""
        deadline = time.monotonic() + ALL_PROCESSES_TIMEOUT_S
        while True:
            newest = self._state.in_effect.generation
            processes = {**self._processes, self._votes.process: self._vote}
            behind = {name: process for name, process in sorted(processes.items()) if process.generation < newest}
            if not behind or time.monotonic() > deadline or not self._tasks:
                return tuple(
                    f"process {name} is still at generation {process.generation}"
                    + (f": {process.not_applied}" if process.not_applied else "")
                    for name, process in behind.items()
                )
            await asyncio.sleep(self._poll_s / 4)

    async def _watch(self) -> None:
        """Check the file once, and propose its content if it has changed and is complete."""
        content = None
        try:
            signature: object = await self._read(lambda: _signature(self._file))
            if signature != self._handled_signature:
                content = await self._read(partial(read_content, self._file))
        except OSError as error:
            signature, content = str(error), None
        if signature != self._handled_signature and (signature, content) == self._last_check:
            if content is None:
                logger.warning("configuration: %s; generation %d stays in effect", signature, self.generation)
                self._handled_signature = signature
            else:
                proposal = await self._on_vote_thread(lambda: self._votes.propose(content, requested=False))
                self._wake.set()
                if proposal.generation or proposal.content == content:
                    self._handled_signature = signature
        self._last_check = signature, content
        await asyncio.sleep(self._watch_s)

    async def _on_vote_thread(self, call: Callable[[], R]) -> R:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._vote_thread, call)
        except OSError as error:
            raise RunDirectoryError(
                f"the configuration cannot be agreed on between processes: {describe(error, self._folder)}"
            ) from error

    async def _read(self, call: Callable[[], R]) -> R:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._file_thread, call)
        except TimeoutError:
            raise OSError(f"{self._file}: cannot be read: no answer within {READ_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise OSError(f"{self._file}: cannot be read: {error.strerror or error}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _signature(file: Path) -> tuple[int, ...]:
    """Return a value that changes when the file changes.

    The file is opened because a network file system then asks its server; for `stat` alone it may not.

    Raises:
        OSError: it cannot be opened, or it is a pipe or a device: reading one takes its content away.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file, so changes are not noticed; reload it by request")
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
