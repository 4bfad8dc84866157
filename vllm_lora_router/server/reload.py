"""The configuration's file, followed: what it becomes is in force in every process of the server, or in none."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from msgspec.structs import replace

from vllm_lora_router.coordination.config_votes import Agreement, Process, Proposal
from vllm_lora_router.coordination.run_directory import RunDirectory

T = TypeVar("T")
R = TypeVar("R")
Outcome = Literal["taken", "unchanged", "refused"]

READ_S = 10.0  # a network file system may never answer
EVERYWHERE_S = 5.0  # how long `reload` waits until all processes have what was taken

logger = logging.getLogger("vllm_lora_router.server")


class ReloadRefused(ValueError):
    """A content that cannot be used; each problem is one line."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Result:
    """What became of the file's content when somebody asked for it."""

    outcome: Outcome
    generation: int  # in force in this process
    problems: tuple[str, ...] = ()  # why it was refused; where it was taken, which processes do not have it


class Reloading(Generic[T]):
    """One process's part in it. Whoever lives finishes what another process began."""

    def __init__(
        self,
        run: RunDirectory,
        file: Path,
        prepare: Callable[[bytes], Awaitable[T]],
        commit: Callable[[T, int], Awaitable[None]],
        *,
        ended: Callable[[str], None] = lambda outcome: None,
        process: int | None = None,
        poll_s: float = 0.2,
        watch_s: float = 1.0,
        limit_s: float = 120.0,
    ) -> None:
        """Does nothing until `begin`.

        Args:
            run: the folder that all processes of the server share.
            file: the configuration, under the name that links may lead from: its resolved path would miss a swap.
            prepare: builds what a content says, off the event loop, and changes nothing that is in force. What it
                raises refuses the content for all. Never runs twice at once; is cancelled when another one refused.
            commit: puts what was prepared in force, under its generation's number. Must be quick and not fail.
            ended: told "taken" or "refused" once for each proposal, after `commit`.
            process: tells this process from the others; its id unless given.
            poll_s: how often it looks at what the others say.
            watch_s: how often it looks at the file. What it finds twice is proposed: once may be half-written.
            limit_s: how long a proposal waits for processes that do not answer.
        """
        self._file, self._prepare, self._commit, self._ended = file, prepare, commit, ended
        self._poll_s, self._watch_s = poll_s, watch_s
        self._agreement = Agreement(run, str(os.getpid() if process is None else process), limit_s)
        # Neither a file that cannot be read nor what else keeps the loop's own threads busy may hold up the votes.
        self._disk, self._reading = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._begun = self._done = 0  # the last proposals that were begun to be prepared, and that have ended
        self._preparing: asyncio.Task[T] | None = None
        self._one = asyncio.Lock()  # what was cancelled may hold its memory for a while
        self._found: object = None  # what the file was like at the last look
        self._handled: object = None  # and when its content was dealt with

    @property
    def generation(self) -> int:
        """What is in force in this process."""
        return self._own.generation

    async def begin(self, content: bytes) -> bytes:
        """The content to start with: `content`, as generation 1, or what processes that run already have in force.

        From here on nothing is taken without this process: proposals wait until it has started.
        """
        self._state = await self._on_disk(lambda: self._agreement.join(content))
        self._own = self._said = Process(self._state.in_force.generation, self._state.in_force.sha256)
        self._processes = {self._agreement.process: self._own}
        self._begun = self._done = self._state.proposed - (self._state.pending is not None)
        return self._state.in_force.content

    def start(self) -> None:
        self._tasks = [asyncio.ensure_future(self._repeat(chore)) for chore in (self._follow, self._watch)]

    async def stop(self) -> None:
        """Leaves; the others go on without this process."""
        tasks, self._tasks = [*self._tasks, *([self._preparing] if self._preparing else [])], []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        await self._on_disk(self._agreement.leave)
        self._disk.shutdown(wait=False)
        self._reading.shutdown(wait=False, cancel_futures=True)

    async def reload(self) -> Result:
        """Proposes what the file contains now, also when it was refused before, and waits for the outcome."""
        while True:
            try:
                content = await self._read(self._file.read_bytes)
                decides = await self._on_disk(lambda content=content: self._agreement.propose(content, asked=True))
            except OSError as error:
                return Result("refused", self.generation, (str(error),))
            self._wake.set()
            while self._done < decides.number:
                if not self._tasks:
                    return Result("refused", self.generation, ("this process is starting or stopping",))
                await asyncio.sleep(self._poll_s / 4)
            if decides.generation:
                return Result("unchanged", self.generation)
            if decides.content == content:  # otherwise it was another one's, and ours comes after it
                refused = (end.problems for end in self._state.refused if end.number == decides.number)
                if problems := next(refused, None):
                    return Result("refused", self.generation, problems)
                return Result("taken", self.generation, await self._behind())

    def status(self) -> dict[str, Any]:
        """What is in force here, and in each living process, for JSON."""
        state = "preparing" if self._state.pending else "in-force"
        refused = self._state.refused[-1] if self._state.refused else None
        return {
            "generation": self.generation,
            "version": self._own.sha256[:8],
            "file": self._file.name,
            "state": "behind" if self.generation < self._state.in_force.generation else state,
            "refused": refused
            and {
                "version": refused.sha256[:8],
                "problems": list(refused.problems),
                "at": datetime.fromtimestamp(refused.ended_s, UTC).isoformat(timespec="seconds"),
            },
            # Of the others as they were last seen, of this one as it is.
            "processes": {
                name: process.generation
                for name, process in sorted({**self._processes, self._agreement.process: self._own}.items())
            },
        }

    async def _repeat(self, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await chore()
            except Exception:
                logger.exception("configuration: following it failed; it is tried again in a second")
                await asyncio.sleep(1)

    async def _follow(self) -> None:
        """One look at what the others say."""
        self._wake.clear()
        if (own := self._own) != self._said:
            await self._on_disk(lambda: self._agreement.say(own))
            self._said = own
        self._state, self._processes = await self._on_disk(self._agreement.look)
        for end in sorted((*self._state.refused, self._state.in_force), key=lambda end: end.number):
            if end.number > self._done:
                await self._conclude(end)
        if (pending := self._state.pending) is not None and pending.number > self._begun:
            self._begun = pending.number
            self._preparing = asyncio.ensure_future(self._build(pending.content))
            self._preparing.add_done_callback(lambda task: self._vote(pending.number, task))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await self._wake.wait()

    async def _build(self, content: bytes) -> T:
        async with self._one:
            return await self._prepare(content)

    def _vote(self, number: int, task: "asyncio.Task[T]") -> None:
        problems: tuple[str, ...] = ()
        error = asyncio.CancelledError("given up") if task.cancelled() else task.exception()
        if error is not None:
            problems = (" ".join(f"{type(error).__name__}: {error}".split()),)
            if isinstance(error, ReloadRefused):
                problems = error.problems or problems
            elif number > self._done:
                logger.error("configuration: an error while it was prepared", exc_info=error)
        self._own = replace(self._own, voted=number, problems=problems)
        self._wake.set()

    async def _conclude(self, end: "Proposal") -> None:
        task, version = self._preparing, end.sha256[:8]
        if not end.generation:
            if task is not None:
                task.cancel()
                self._preparing = None if task.done() else task
            logger.warning("configuration: version %s is refused:\n%s", version, "\n".join(end.problems))
        else:
            self._preparing = None
            try:
                assert task is not None  # nothing is taken without this process's vote
                await self._commit(task.result(), end.generation)
            except Exception:
                logger.exception("configuration: generation %d (version %s) failed here", end.generation, version)
            else:
                self._own = replace(self._own, generation=end.generation, sha256=end.sha256)
                logger.info("configuration: generation %d (version %s) is in force", end.generation, version)
        self._done = end.number
        self._wake.set()  # to tell the others
        self._ended("taken" if end.generation else "refused")

    async def _behind(self) -> tuple[str, ...]:
        """Waits until all processes have what is in force; says which do not come along."""
        until = time.monotonic() + EVERYWHERE_S
        while True:
            has = {name: process.generation for name, process in self._processes.items()}
            behind = {name: number for name, number in has.items() if number < self._state.in_force.generation}
            if not behind or time.monotonic() > until or not self._tasks:
                return tuple(f"process {name} is still at generation {number}" for name, number in behind.items())
            await asyncio.sleep(self._poll_s / 4)

    async def _watch(self) -> None:
        """One look at the file."""
        content = None
        try:
            found: object = await self._read(lambda: _signature(self._file))
            if found != self._handled:
                content = await self._read(self._file.read_bytes)
        except OSError as error:
            found, content = str(error), None
        if found != self._handled and (found, content) == self._found:
            if content is None:
                logger.warning("configuration: %s; generation %d stays in force", found, self.generation)
                self._handled = found
            else:
                decides = await self._on_disk(lambda: self._agreement.propose(content, asked=False))
                self._wake.set()
                if decides.generation or decides.content == content:
                    self._handled = found
        self._found = found, content
        await asyncio.sleep(self._watch_s)

    async def _on_disk(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)

    async def _read(self, call: Callable[[], R]) -> R:
        try:
            async with asyncio.timeout(READ_S):
                return await asyncio.get_running_loop().run_in_executor(self._reading, call)
        except TimeoutError:
            raise OSError(f"{self._file}: cannot be read: no answer within {READ_S:g} s") from None
        except OSError as error:
            raise OSError(f"{self._file}: cannot be read: {error.strerror or error}") from None


def _signature(file: Path) -> tuple[int, ...]:
    """Differs when the file does. To open it makes a network file system ask its server; a mere stat may not."""
    with file.open("rb") as opened:
        found = os.fstat(opened.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
