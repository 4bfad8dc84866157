"""Configuration reload with several real processes: a change takes effect in all of them or in none."""

import asyncio
import hashlib
import json
import logging
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_lora_router.coordination import config_votes, repeat
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.server import reload
from vllm_lora_router.server.reload import ConfigReloader, ReloadRefusedError

from ..resources import full, small_disk

# A content is "right", or names what is wrong with it and in which process.
SERVER = """
import asyncio, json, sys, time
from pathlib import Path
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.server.reload import ConfigReloader, ReloadRefusedError

process, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
observed = {"content": "", "prepared": 0, "outcomes": []}
original_time = time.time
commits = 0

async def prepare(content):
    observed["prepared"] += 1
    text = content.decode()
    if "wrong" in text or f"too much for {process}" in text:
        raise ReloadRefusedError([f"{text} cannot be used", "second problem"])
    if f"hangs in {process}" in text:
        await asyncio.sleep(3600)
    if f"slow in {process}" in text:
        await asyncio.sleep(0.25)
    return text

async def commit(text, generation):
    global commits
    commits += 1
    if f"fails in {process}" in text or (f"fails at first in {process}" in text and commits % 2):
        raise RuntimeError("no")
    observed["content"] = text

async def serve():
    file = folder / "config.yaml"
    run = RunDirectory.open("server", folder / "run")
    record_outcome = observed["outcomes"].append
    reloader = ConfigReloader(run, file, prepare, commit, on_outcome=record_outcome, process=int(process), **options)
    observed["content"] = (await reloader.join(file.read_bytes())).decode()
    reloader.start()
    answer = {"up": True}
    while True:
        print(json.dumps(answer), flush=True)
        command = (await asyncio.to_thread(sys.stdin.readline)).strip()
        if command == "reload":
            result = await reloader.reload()
            answer = {"outcome": result.outcome, "generation": result.generation, "problems": result.problems}
        elif command.startswith("clock "):
            offset_s = float(command.split()[1])
            time.time = lambda: original_time() + offset_s
            answer = {}
        elif command == "status":
            answer = {**reloader.status(), **observed}
        else:
            await reloader.stop()
            return run.close()

asyncio.run(serve())
"""


class Process:
    """A process with one `ConfigReloader`, which is controlled over standard input."""

    def __init__(self, number: int, folder: Path, **options: float) -> None:
        command = [sys.executable, "-c", SERVER, str(number), str(folder), json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_until_up(self) -> "Process":
        assert self.read_answer() == {"up": True}
        return self

    def send(self, command: str) -> None:
        print(command, file=self._process.stdin, flush=True)

    def read_answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 60)[0], "no answer within 60 s"
        return json.loads(self._process.stdout.readline())

    def reload(self) -> dict[str, Any]:
        self.send("reload")
        return self.read_answer()

    @property
    def status(self) -> dict[str, Any]:
        self.send("status")
        return self.read_answer()

    @property
    def in_effect(self) -> tuple[int, str]:
        status = self.status
        return status["generation"], status["content"]

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


class Server:
    """Several processes that share one configuration file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "config.yaml"
        self._processes: list[Process] = []
        self.write("right 1")

    def write(self, text: str) -> None:
        new = self.folder / "new"
        new.write_text(text)
        new.replace(self.file)

    def start(self, number: int, **options: float) -> Process:
        self._processes.append(Process(number, self.folder, **(options or {"poll_s": 0.05, "watch_s": 0.1})))
        return self._processes[-1]

    def start_two(self, **options: float) -> tuple[Process, Process]:
        first, second = self.start(1, **options), self.start(2, **options)
        return first.wait_until_up(), second.wait_until_up()

    def close(self) -> None:
        for process in self._processes:
            process.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.02)


def test_change_takes_effect_in_all_processes(server: Server) -> None:
    first, second = server.start_two(poll_s=0.2, watch_s=1.0)
    assert first.in_effect == second.in_effect == (1, "right 1")
    server.write("right 2")
    eventually(lambda: first.in_effect == second.in_effect == (2, "right 2"))
    eventually(lambda: first.status["processes"] == second.status["processes"] == {"1": 2, "2": 2})
    assert first.status["outcomes"] == second.status["outcomes"] == ["applied"]
    assert first.status["version"] == second.status["version"]


def test_change_that_one_process_refuses_is_refused_by_all_with_its_problems(server: Server) -> None:
    first, second = server.start_two()
    for text in ("wrong", "too much for 2", "too much for 1"):
        server.write(text)
        problems = [f"{text} cannot be used", "second problem"]
        for process in (first, second):
            eventually(lambda: (process.status["refused"] or {}).get("problems") == problems)  # noqa: B023
    eventually(lambda: first.status["outcomes"] == second.status["outcomes"] == ["refused"] * 3)
    assert first.in_effect == second.in_effect == (1, "right 1")
    assert first.status["state"] == "in-effect"


def test_refused_content_is_proposed_again_only_on_request(server: Server) -> None:
    first, second = server.start_two()
    server.write("wrong")
    eventually(lambda: first.status["outcomes"] == second.status["outcomes"] == ["refused"])
    os.utime(server.file)
    time.sleep(0.3)
    assert first.status["outcomes"] == ["refused"]
    assert second.reload() == {
        "outcome": "refused",
        "generation": 1,
        "problems": ["wrong cannot be used", "second problem"],
    }
    eventually(lambda: first.status["outcomes"] == second.status["outcomes"] == ["refused"] * 2)
    server.write("right 1")
    time.sleep(0.3)
    server.write("wrong")  # counts as another change
    eventually(lambda: first.status["outcomes"] == second.status["outcomes"] == ["refused"] * 3)


def test_unchanged_content_makes_no_new_generation(server: Server) -> None:
    first, second = server.start_two()
    server.write("right 1")
    assert first.reload() == {"outcome": "unchanged", "generation": 1, "problems": []}
    time.sleep(0.3)
    assert first.status["prepared"] == second.status["prepared"] == 0


def test_reload_returns_when_all_processes_have_applied_the_content(server: Server) -> None:
    first, second = server.start_two(poll_s=0.2, watch_s=60)
    for number, text in ((2, "right, slow in 1"), (3, "right, slow in 2")):
        server.write(text)
        assert first.reload() == {"outcome": "applied", "generation": number, "problems": []}
        assert second.in_effect == (number, text)


def test_concurrent_reloads_make_one_generation(server: Server) -> None:
    first, second = server.start_two(poll_s=0.05, watch_s=60)
    server.write("right 2")
    first.send("reload")
    assert second.reload()["generation"] == 2
    assert first.read_answer()["generation"] == 2
    assert first.status["prepared"] == second.status["prepared"] == 1


def test_swapped_symbolic_link_is_detected(server: Server) -> None:
    # As Kubernetes mounts a ConfigMap: config.yaml -> ..data/config.yaml, ..data -> a folder for each content.
    for name in ("one", "two"):
        (server.folder / name).mkdir()
        (server.folder / name / "config.yaml").write_text(f"right {name}")
        os.utime(server.folder / name / "config.yaml", (1, 1))
    (server.folder / "..data").symlink_to("one")
    server.file.unlink()
    server.file.symlink_to("..data/config.yaml")
    first, second = server.start_two()
    (server.folder / "..new").symlink_to("two")
    (server.folder / "..new").replace(server.folder / "..data")
    eventually(lambda: first.in_effect == second.in_effect == (2, "right two"))


def test_missing_file_changes_nothing_until_it_is_restored(server: Server) -> None:
    first, second = server.start_two()
    server.file.unlink()
    assert first.reload() == {
        "outcome": "refused",
        "generation": 1,
        "problems": [f"{server.file}: cannot be read: No such file or directory"],
    }
    time.sleep(0.3)
    server.write("right 2")
    eventually(lambda: first.in_effect == second.in_effect == (2, "right 2"))


def test_killed_proposer_does_not_block_others(server: Server) -> None:
    first, second = server.start_two(poll_s=0.05, watch_s=60)
    server.write("right, but hangs in 1")
    first.send("reload")
    eventually(lambda: second.status["prepared"] == 1)
    time.sleep(0.2)
    assert second.in_effect == (1, "right 1")
    assert second.status["state"] == "preparing"
    first.kill()
    eventually(lambda: second.in_effect == (2, "right, but hangs in 1"))
    assert second.status["processes"] == {"2": 2}


def test_process_that_does_not_vote_in_time_refuses_the_change_for_all(server: Server) -> None:
    first, second = server.start_two(poll_s=0.05, watch_s=60, vote_timeout_s=0.5)
    server.write("right, but hangs in 2")
    problems = ["process 2 has not prepared it within 0.5 s"]
    assert first.reload() == {"outcome": "refused", "generation": 1, "problems": problems}
    eventually(lambda: (second.status["refused"] or {}).get("problems") == problems)
    server.write("right 3")
    assert second.reload()["outcome"] == "applied"
    assert first.in_effect == second.in_effect == (2, "right 3")


def test_failed_commit_is_shown_in_status(server: Server) -> None:
    first, second = server.start_two()
    server.write("right, but fails in 2")
    eventually(lambda: first.in_effect[0] == 2 and second.status["state"] == "behind")
    eventually(lambda: first.status["processes"] == second.status["processes"] == {"1": 2, "2": 1})
    server.write("right 3")
    eventually(lambda: first.in_effect == second.in_effect == (3, "right 3"))


def test_late_process_starts_with_configuration_in_effect_instead_of_file(server: Server) -> None:
    first = server.start(1).wait_until_up()
    for number in (2, 3):
        server.write(f"right {number}")
        assert first.reload()["outcome"] == "applied"
    server.write("wrong")
    eventually(lambda: first.status["refused"] is not None)
    second = server.start(2).wait_until_up()
    assert second.in_effect == (3, "right 3")
    assert second.status["prepared"] == 0
    assert second.status["refused"]["problems"] == ["wrong cannot be used", "second problem"]
    server.write("right 4")
    eventually(lambda: first.in_effect == second.in_effect == (4, "right 4"))


def test_process_that_starts_during_a_vote_takes_part_in_it(server: Server) -> None:
    first, second = server.start_two(poll_s=0.05, watch_s=60)
    server.write("too much for 3, hangs in 2")
    first.send("reload")
    eventually(lambda: second.status["prepared"] == 1)
    third = server.start(3, poll_s=0.05, watch_s=60).wait_until_up()
    assert first.read_answer()["outcome"] == "refused"
    assert first.in_effect == second.in_effect == third.in_effect == (1, "right 1")


def test_last_of_50_quick_changes_takes_effect_in_all_processes(server: Server) -> None:
    first, second = server.start_two(poll_s=0.02, watch_s=0.02)
    for number in range(1, 51):
        server.write(f"wrong {number}" if number % 5 == 1 else f"right {number}")
        time.sleep(random.uniform(0.0, 0.06))
    eventually(lambda: first.in_effect[1] == second.in_effect[1] == "right 50")
    assert first.in_effect == second.in_effect
    assert first.status["outcomes"] == second.status["outcomes"]
    assert first.in_effect[0] == 1 + first.status["outcomes"].count("applied")


def test_process_killed_at_a_random_moment_does_not_block_others(server: Server) -> None:
    options = {"poll_s": 0.01, "watch_s": 0.01}
    steady = server.start(0, **options).wait_until_up()
    for number in range(8):
        other = server.start(number % 2 + 1, **options).wait_until_up()
        server.write(f"right {number}")
        time.sleep(random.uniform(0.0, 0.08))
        other.kill()
    eventually(lambda: steady.in_effect[1] == "right 7")
    late = server.start(9, **options).wait_until_up()
    assert late.in_effect == steady.in_effect


def test_generation_restarts_at_1_after_all_processes_have_ended(server: Server) -> None:
    first, second = server.start_two()
    server.write("right 2")
    assert first.reload()["outcome"] == "applied"
    first.kill()
    second.kill()
    server.write("right 3")
    assert server.start(1).wait_until_up().in_effect == (1, "right 3")


@pytest.mark.parametrize("count", [1, 2])
def test_processes_agree_after_random_histories(server: Server, count: int, request: pytest.FixtureRequest) -> None:
    """Processes are killed and stopped, their clocks are set, and contents are refused or fail to take effect."""
    generator = random.Random(count)
    options = {"poll_s": 0.01, "watch_s": 0.02, "vote_timeout_s": 5.0}
    numbers = iter(range(1, 10_000))

    def start() -> tuple[int, Process]:
        number = next(numbers)
        return number, server.start(number, **options)

    living = dict(start() for _ in range(count))
    for process in living.values():
        process.wait_until_up()
    for history in range(25 if request.config.getoption("--full") else 3):
        for step in range(6):
            number, process = generator.choice(list(living.items()))
            match generator.choice(("write", "write", "refuse", "fail", "kill", "stop", "clock")):
                case "write":
                    server.write(f"right {history}.{step}")
                case "refuse":
                    server.write(f"too much for {number} {history}.{step}")
                case "fail":
                    server.write(f"right {history}.{step}, fails at first in {number}")
                case "kill":
                    process.kill()
                    del living[number]
                    server.write(f"right {history}.{step}")  # the next process may be the only one
                    number, process = start()
                    living[number] = process.wait_until_up()
                case "stop":
                    process.signal(signal.SIGSTOP)
                    time.sleep(generator.uniform(0.0, 0.1))
                    process.signal(signal.SIGCONT)
                case _:
                    process.send(f"clock {generator.choice((-1e6, 1e6))}")
                    assert process.read_answer() == {}
            time.sleep(generator.uniform(0.0, 0.1))
        last = f"right {history}, fails at first in {min(living)}"
        server.write(last)
        eventually(lambda: min(living.values(), key=id).reload()["outcome"] != "refused")
        eventually(lambda: {process.in_effect[1] for process in living.values()} == {last})  # noqa: B023
        generations = {process.in_effect[0] for process in living.values()}
        assert len(generations) == 1
        for process in living.values():
            eventually(lambda: process.status["processes"] == dict.fromkeys(map(str, living), *generations))  # noqa: B023
            status = process.status
            assert (status["state"], status["problem"], status["agreed_generation"]) == (
                "in-effect",
                None,
                *generations,
            )


# The following tests run the reloaders in the test process.


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[RunDirectory]:
    run = RunDirectory.open("server", tmp_path / "run")
    yield run
    run.close()


async def _prepare(content: bytes) -> bytes:
    if content == b"broken":
        raise ValueError("broken\nin two lines")
    if content == b"wrong":
        raise ReloadRefusedError(["config.yaml:1:1: wrong", "config.yaml:2:1: wrong again"])
    return content


async def _commit(content: bytes, generation: int) -> None:
    pass


async def test_log_contains_versions_and_problems_but_no_content(
    run: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vllm_lora_router")
    file = tmp_path / "config.yaml"
    reloader = ConfigReloader(run, file, _prepare, _commit, poll_s=0.02, watch_s=60)
    await reloader.join(b"right")
    reloader.start()
    versions = []
    for content in (b"secret", b"wrong", b"broken"):
        file.write_bytes(content)
        versions.append(hashlib.sha256(content).hexdigest()[:8])
        await reloader.reload()
    await reloader.stop()
    refused = "is refused; generation 2 stays in effect"
    assert [record.getMessage() for record in caplog.records] == [
        f"configuration: generation 2 (version {versions[0]}) is in effect",
        f"configuration: version {versions[1]} {refused}:\nconfig.yaml:1:1: wrong\nconfig.yaml:2:1: wrong again",
        "configuration: unexpected error while preparing a new version",
        f"configuration: version {versions[2]} {refused}:\nValueError: broken in two lines",
    ]


class Commits:
    """A commit that fails with `error`, or waits for `gate`, as long as they are set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.calls = 0
        self.in_effect = b""

    async def __call__(self, content: bytes, generation: int) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        if self.gate is not None:
            await self.gate.wait()
        self.in_effect = content


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def two(run: RunDirectory, tmp_path: Path) -> AsyncIterator[tuple[list[ConfigReloader[bytes]], list[Commits]]]:
    """Two reloaders of the file config.yaml that does not change by itself, and their commits."""
    commits = [Commits(), Commits()]
    reloaders = [
        ConfigReloader(
            run, tmp_path / "config.yaml", _prepare, commit, process=number, poll_s=0.01, watch_s=60, vote_timeout_s=5
        )
        for number, commit in enumerate(commits, 1)
    ]
    for reloader in reloaders:
        await reloader.join(b"right 1")
        reloader.start()
    yield reloaders, commits
    for reloader in reloaders:
        await reloader.stop()


async def test_process_whose_commit_failed_tries_again_by_itself(
    two: tuple[list[ConfigReloader[bytes]], list[Commits]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vllm_lora_router")
    (first, second), (_, commit) = two
    commit.error = RuntimeError("the disk\nis full")
    (tmp_path / "config.yaml").write_bytes(b"right 2")
    result = await first.reload()
    behind = "process 2 is still at generation 1: RuntimeError: the disk is full"
    assert (result.outcome, result.generation, result.problems) == ("applied", 2, (behind,))
    status = second.status()
    assert (status["generation"], status["agreed_generation"], status["state"]) == (1, 2, "behind")
    assert status["problem"] == "RuntimeError: the disk is full"
    assert (first.status()["state"], first.status()["processes"]) == ("in-effect", {"1": 2, "2": 1})
    calls = commit.calls
    await wait_until(lambda: commit.calls > calls)
    commit.error = None
    await wait_until(lambda: second.status()["state"] == "in-effect")
    assert (second.status()["generation"], second.status()["problem"]) == (2, None)
    assert commit.in_effect == b"right 2"
    assert sum("generation 2 (version" in message and "not in effect" in message for message in caplog.messages) == 1
    await wait_until(lambda: "configuration: applying the agreed version works again" in caplog.messages)


async def test_reload_is_unchanged_only_if_all_processes_have_the_content_in_effect(
    two: tuple[list[ConfigReloader[bytes]], list[Commits]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "ALL_PROCESSES_TIMEOUT_S", 0.1)
    (first, second), (_, commit) = two
    commit.error = RuntimeError("no")
    (tmp_path / "config.yaml").write_bytes(b"right 2")
    await first.reload()
    behind = ("process 2 is still at generation 1: RuntimeError: no",)
    for reloader, generation in ((first, 2), (second, 1)):
        result = await reloader.reload()
        assert (result.outcome, result.generation, result.problems) == ("applied", generation, behind)
    commit.error = None
    monkeypatch.setattr(reload, "ALL_PROCESSES_TIMEOUT_S", 60)
    assert (await second.reload()).outcome == "applied"
    assert commit.in_effect == b"right 2"
    for reloader in (first, second):
        result = await reloader.reload()
        assert (result.outcome, result.generation, result.problems) == ("unchanged", 2, ())


async def test_hanging_commit_delays_no_vote_and_a_newer_generation_replaces_it(
    two: tuple[list[ConfigReloader[bytes]], list[Commits]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "ALL_PROCESSES_TIMEOUT_S", 0.1)
    monkeypatch.setattr(reload, "COMMIT_TIMEOUT_S", 0.2)
    (first, second), (_, commit) = two
    commit.gate = asyncio.Event()  # for example, a network file system that does not answer
    for number in (2, 3):
        (tmp_path / "config.yaml").write_bytes(b"right %d" % number)
        result = await first.reload()
        assert (result.outcome, result.generation) == ("applied", number)
        assert second.status()["state"] == "behind"
        await wait_until(lambda: second.status()["problem"] == "no result within 0.2 s")
    commit.gate.set()
    await wait_until(lambda: second.generation == 3)
    assert commit.in_effect == b"right 3"


async def test_pipe_in_place_of_the_file_blocks_no_check_and_is_reported(
    run: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"right 1")
    reloader = ConfigReloader(run, file, _prepare, _commit, poll_s=0.01, watch_s=0.01)
    await reloader.join(b"right 1")
    reloader.start()
    file.unlink()
    os.mkfifo(file)
    await wait_until(lambda: bool(caplog.messages))
    assert caplog.messages == [
        f"configuration: {file}: cannot be read: it is not a regular file, so changes are not noticed; reload it by "
        "request; generation 1 stays in effect"
    ]
    file.unlink()
    file.write_bytes(b"right 2")
    await wait_until(lambda: reloader.generation == 2)
    await reloader.stop()


class Member:
    """One process of a random history: a reloader, and what it put in effect."""

    def __init__(self, number: int, run: RunDirectory, file: Path, committed: dict[int, bytes]) -> None:
        self.number, self.file, self.commit, self.committed = number, file, Commits(), committed
        self.reloader = ConfigReloader(
            run, file, self.prepare, self.apply, process=number, poll_s=0.002, watch_s=0.004, vote_timeout_s=2.0
        )
        self.refuses = False
        self.applied: list[int] = []

    async def prepare(self, content: bytes) -> bytes:
        if self.refuses:
            raise ReloadRefusedError(["does not fit"])
        return content

    async def apply(self, content: bytes, generation: int) -> None:
        await self.commit(content, generation)
        assert self.committed.setdefault(generation, content) == content, "two contents have one generation"
        self.applied.append(generation)

    async def start(self) -> "Member":
        self.commit.in_effect = await self.reloader.join(self.file.read_bytes())
        self.reloader.start()
        return self

    def hang(self) -> None:
        """Stop to follow the votes while the process stays alive."""
        for task in self.reloader._tasks:
            task.cancel()

    def resume(self) -> None:
        self.hang()
        self.reloader.start()

    def heal(self) -> None:
        self.refuses, self.commit.error = False, None
        if self.commit.gate is not None:
            self.commit.gate.set()
            self.commit.gate = None
        self.resume()

    async def kill(self) -> None:
        """End without a trace other than the lock, which the kernel releases."""
        votes = self.reloader._votes
        os.close(votes._descriptor)
        votes._descriptor = -1  # `leave` then removes nothing
        await self.reloader.stop()


async def _random_history(folder: Path, count: int, generator: random.Random, clock: list[float]) -> None:
    folder.mkdir()
    run, file, numbers = RunDirectory.open("server", folder / "run"), folder / "config.yaml", iter(range(1, 1000))

    def write(content: bytes) -> None:
        (folder / "new").write_bytes(content)
        (folder / "new").replace(file)

    write(b"right")
    committed: dict[int, bytes] = {}
    members = [await Member(next(numbers), run, file, committed).start() for _ in range(count)]
    reloads: list[asyncio.Task[Any]] = []
    for step in range(12):
        member = generator.choice(members)
        match generator.choice(("write", "write", "reload", "refuse", "fail", "hang", "gate", "heal", "kill", "clock")):
            case "write":
                write(b"right %d" % step)
            case "reload":
                reloads.append(asyncio.ensure_future(member.reloader.reload()))
            case "refuse":
                member.refuses = True
            case "fail":
                member.commit.error = RuntimeError("no")
            case "hang":
                member.hang()
            case "gate":
                member.commit.gate = asyncio.Event()
            case "heal":
                member.heal()
            case "kill":
                members.remove(member)
                await member.kill()
                if not members:
                    committed = {}
                members.append(await Member(next(numbers), run, file, committed).start())
            case _:
                clock[0] += generator.choice((-1e6, 1e6))
        await asyncio.sleep(generator.choice((0.0, 0.002, 0.01)))
    for member in members:
        member.heal()
    write(b"right at last")
    while (await members[0].reloader.reload()).outcome == "refused":
        pass
    await wait_until(lambda: all(member.reloader.status()["state"] == "in-effect" for member in members))
    await wait_until(lambda: {member.commit.in_effect for member in members} == {b"right at last"})
    assert len({member.reloader.generation for member in members}) == 1
    for member in members:
        assert member.applied == sorted(set(member.applied))
        assert (await member.reloader.reload()).outcome == "unchanged"
    for task in reloads:
        task.cancel()
    for member in members:
        await member.reloader.stop()
    run.close()


@pytest.mark.parametrize("count", [1, 2])
async def test_reloaders_agree_after_random_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, request: pytest.FixtureRequest
) -> None:
    clock = [0.0]
    monkeypatch.setattr(config_votes, "time", SimpleNamespace(monotonic=time.monotonic, time=lambda: 1e9 + clock[0]))
    monkeypatch.setattr(reload, "COMMIT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(repeat, "RETRY_S", 0.01)
    for seed in range(500 if request.config.getoption("--full") else 30):
        await _random_history(tmp_path / f"{seed}", count, random.Random(seed), clock)


async def test_unreadable_file_does_not_delay_votes(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "READ_TIMEOUT_S", 0.2)
    stuck, file = tmp_path / "stuck.yaml", tmp_path / "config.yaml"
    os.mkfifo(stuck)  # opening it blocks, like a file on a server that does not answer
    file.write_bytes(b"right 2")
    first = ConfigReloader(run, stuck, _prepare, _commit, process=1, poll_s=0.02, watch_s=0.02, vote_timeout_s=5)
    second = ConfigReloader(run, file, _prepare, _commit, process=2, poll_s=0.02, watch_s=60, vote_timeout_s=5)
    try:
        for reloader in (first, second):
            await reloader.join(b"right 1")
            reloader.start()
        await asyncio.sleep(0.1)
        assert (await second.reload()).outcome == "applied"
        assert first.generation == second.generation == 2
        refused = await first.reload()
        assert refused.problems == (f"{stuck}: cannot be read: no answer within 0.2 s",)
    finally:
        writer = os.open(stuck, os.O_RDWR)  # unblocks the reader
        for reloader in (first, second):
            await reloader.stop()
        os.close(writer)


async def test_partly_written_file_is_not_proposed(run: RunDirectory, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"right")
    prepared: list[bytes] = []
    accepted = asyncio.Event()

    async def prepare(content: bytes) -> bytes:
        prepared.append(content)
        return content

    reloader = ConfigReloader(
        run, file, prepare, _commit, on_outcome=lambda outcome: accepted.set(), poll_s=0.02, watch_s=0.3
    )
    await reloader.join(b"right")
    reloader.start()
    with file.open("wb") as slow:
        for part in (b"one ", b"two ", b"three "):
            slow.write(part)
            slow.flush()
            await asyncio.sleep(0.2)
    await asyncio.wait_for(accepted.wait(), 60)
    await reloader.stop()
    assert prepared == [b"one two three "]


async def test_preparation_is_cancelled_when_another_process_refuses(run: RunDirectory, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"big")
    cancelled = asyncio.Event()

    async def slow(content: bytes) -> bytes:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return content

    async def refuse(content: bytes) -> bytes:
        raise MemoryError("does not fit")

    first = ConfigReloader(run, file, slow, _commit, process=1, poll_s=0.02, watch_s=60)
    second = ConfigReloader(run, file, refuse, _commit, process=2, poll_s=0.02, watch_s=60)
    for reloader in (first, second):
        await reloader.join(b"right")
        reloader.start()
    result = await first.reload()
    assert (result.outcome, result.problems) == ("refused", ("MemoryError: does not fit",))
    await asyncio.wait_for(cancelled.wait(), 60)
    for reloader in (first, second):
        await reloader.stop()


async def test_stopped_process_is_not_waited_for(run: RunDirectory, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    first = ConfigReloader(run, file, _prepare, _commit, process=1, poll_s=0.02, watch_s=60, vote_timeout_s=5)
    second = ConfigReloader(run, file, _prepare, _commit, process=2, poll_s=0.02, watch_s=60, vote_timeout_s=5)
    for reloader in (first, second):
        await reloader.join(b"right")
        reloader.start()
    await first.stop()
    file.write_bytes(b"right 2")
    assert (await second.reload()).outcome == "applied"
    assert second.status()["processes"] == {"2": 2}
    await second.stop()


async def test_reload_on_a_full_disk_is_refused_with_the_remedy_and_works_when_there_is_space(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    applied: list[bytes] = []

    async def prepare(content: bytes) -> bytes:
        return content

    async def commit(content: bytes, generation: int) -> None:
        applied.append(content)

    file = tmp_path / "config.yaml"
    file.write_bytes(b"first")
    with small_disk(tmp_path / "disk", "1m") as disk:
        run = RunDirectory.open("server", disk)
        reloader = ConfigReloader(run, file, prepare, commit, poll_s=0.01, watch_s=0.01)
        await reloader.join(b"first")
        reloader.start()
        state = run.folder / "configuration" / "state.json"
        before = state.read_bytes()
        with full(disk):
            file.write_bytes(b"second" * 2000)
            result = await reloader.reload()
            assert (result.outcome, result.generation) == ("refused", 1)
            assert result.problems == (
                f"the configuration cannot be agreed on between processes: the disk of {run.folder} is full (0 bytes "
                "free); free some space, or set router.adapters.run_dir to a folder on another disk and restart the "
                "server",
            )
            assert state.read_bytes() == before
            assert [path.name for path in state.parent.iterdir() if path.is_file()] == ["state.json"]
            # The change of the file is noticed as well, and the error is logged once.
            await asyncio.sleep(0.1)
        assert sum("configuration: watching the file failed" in message for message in caplog.messages) <= 1
        assert (await reloader.reload()).outcome in ("applied", "unchanged")
        assert applied == [b"second" * 2000]
        await reloader.stop()
        run.close()
