"""A configuration that changes under several processes, which are real ones, is in force in all of them or in none."""

import asyncio
import hashlib
import json
import logging
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.server import reload
from vllm_lora_router.server.reload import Reloading, ReloadRefused

# A content is "right", or says what is wrong with it and in which process.
SERVER = """
import asyncio, json, sys
from pathlib import Path
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.server.reload import Reloading, ReloadRefused

process, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
saw = {"content": "", "prepared": 0, "ended": []}

async def prepare(content):
    saw["prepared"] += 1
    text = content.decode()
    if "wrong" in text or f"too much for {process}" in text:
        raise ReloadRefused([f"{text} cannot be used", "it really cannot"])
    if f"hangs in {process}" in text:
        await asyncio.sleep(3600)
    if f"slow in {process}" in text:
        await asyncio.sleep(0.25)
    return text

async def commit(text, generation):
    if f"fails in {process}" in text:
        raise RuntimeError("no")
    saw["content"] = text

async def serve():
    file = folder / "config.yaml"
    run = RunDirectory.open("server", folder / "run")
    here = Reloading(run, file, prepare, commit, ended=saw["ended"].append, process=int(process), **options)
    saw["content"] = (await here.begin(file.read_bytes())).decode()
    here.start()
    answer = {"up": True}
    while True:
        print(json.dumps(answer), flush=True)
        asked = (await asyncio.to_thread(sys.stdin.readline)).strip()
        if asked == "reload":
            result = await here.reload()
            answer = {"outcome": result.outcome, "generation": result.generation, "problems": result.problems}
        elif asked == "status":
            answer = {**here.status(), **saw}
        else:
            await here.stop()
            return run.close()

asyncio.run(serve())
"""


class Process:
    """One API server's part of it, in a process of its own."""

    def __init__(self, number: int, folder: Path, **options: float) -> None:
        command = [sys.executable, "-c", SERVER, str(number), str(folder), json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def up(self) -> "Process":
        assert self._answer() == {"up": True}
        return self

    def ask(self, what: str) -> None:
        print(what, file=self._process.stdin, flush=True)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 10)[0], "no answer within 10 s"
        return json.loads(self._process.stdout.readline())

    def reload(self) -> dict[str, Any]:
        self.ask("reload")
        return self._answer()

    @property
    def status(self) -> dict[str, Any]:
        self.ask("status")
        return self._answer()

    @property
    def in_force(self) -> tuple[int, str]:
        status = self.status
        return status["generation"], status["content"]

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
    """Several processes, one configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "config.yaml"
        self._all: list[Process] = []
        self.write("right 1")

    def write(self, text: str) -> None:
        new = self.folder / "new"
        new.write_text(text)
        new.replace(self.file)

    def process(self, number: int, **options: float) -> Process:
        self._all.append(Process(number, self.folder, **(options or {"poll_s": 0.05, "watch_s": 0.1})))
        return self._all[-1]

    def two(self, **options: float) -> tuple[Process, Process]:
        first, second = self.process(1, **options), self.process(2, **options)
        return first.up(), second.up()

    def close(self) -> None:
        for process in self._all:
            process.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def eventually(what: Callable[[], bool], within_s: float = 5.0) -> None:
    until = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < until, f"not within {within_s:g} s"
        time.sleep(0.02)


def test_a_change_is_taken_by_all_processes_within_5_s(server: Server) -> None:
    first, second = server.two(poll_s=0.2, watch_s=1.0)
    assert first.in_force == second.in_force == (1, "right 1")
    server.write("right 2")
    eventually(lambda: first.in_force == second.in_force == (2, "right 2"))
    eventually(lambda: first.status["processes"] == second.status["processes"] == {"1": 2, "2": 2})
    assert first.status["ended"] == second.status["ended"] == ["taken"]
    assert first.status["version"] == second.status["version"]


def test_what_is_wrong_for_one_process_is_taken_by_none_and_all_say_why(server: Server) -> None:
    first, second = server.two()
    for text in ("wrong", "too much for 2", "too much for 1"):
        server.write(text)
        problems = [f"{text} cannot be used", "it really cannot"]
        for process in (first, second):
            eventually(lambda: (process.status["refused"] or {}).get("problems") == problems)  # noqa: B023
    eventually(lambda: first.status["ended"] == second.status["ended"] == ["refused"] * 3)
    assert first.in_force == second.in_force == (1, "right 1")
    assert first.status["state"] == "in-force"


def test_what_was_refused_is_tried_again_on_request_and_not_by_the_watch(server: Server) -> None:
    first, second = server.two()
    server.write("wrong")
    eventually(lambda: first.status["ended"] == second.status["ended"] == ["refused"])
    os.utime(server.file)
    time.sleep(0.3)
    assert first.status["ended"] == ["refused"]
    assert second.reload() == {
        "outcome": "refused",
        "generation": 1,
        "problems": ["wrong cannot be used", "it really cannot"],
    }
    eventually(lambda: first.status["ended"] == second.status["ended"] == ["refused"] * 2)
    server.write("right 1")
    time.sleep(0.3)
    server.write("wrong")  # another change to it
    eventually(lambda: first.status["ended"] == second.status["ended"] == ["refused"] * 3)


def test_unchanged_content_is_no_new_generation(server: Server) -> None:
    first, second = server.two()
    server.write("right 1")
    assert first.reload() == {"outcome": "unchanged", "generation": 1, "problems": []}
    time.sleep(0.3)
    assert first.status["prepared"] == second.status["prepared"] == 0


def test_a_request_is_answered_when_all_processes_have_the_new_content(server: Server) -> None:
    first, second = server.two(poll_s=0.2, watch_s=60)
    for number, text in ((2, "right, slow in 1"), (3, "right, slow in 2")):
        server.write(text)
        assert first.reload() == {"outcome": "taken", "generation": number, "problems": []}
        assert second.in_force == (number, text)


def test_two_requests_at_once_make_one_generation(server: Server) -> None:
    first, second = server.two(poll_s=0.05, watch_s=60)
    server.write("right 2")
    first.ask("reload")
    assert second.reload()["generation"] == 2
    assert first._answer()["generation"] == 2
    assert first.status["prepared"] == second.status["prepared"] == 1


def test_a_swapped_symlink_is_noticed(server: Server) -> None:
    # As Kubernetes mounts a ConfigMap: config.yaml -> ..data/config.yaml, ..data -> a folder for each content.
    for name in ("one", "two"):
        (server.folder / name).mkdir()
        (server.folder / name / "config.yaml").write_text(f"right {name}")
        os.utime(server.folder / name / "config.yaml", (1, 1))
    (server.folder / "..data").symlink_to("one")
    server.file.unlink()
    server.file.symlink_to("..data/config.yaml")
    first, second = server.two()
    (server.folder / "..new").symlink_to("two")
    (server.folder / "..new").replace(server.folder / "..data")
    eventually(lambda: first.in_force == second.in_force == (2, "right two"))


def test_a_file_that_is_gone_changes_nothing_until_it_is_back(server: Server) -> None:
    first, second = server.two()
    server.file.unlink()
    assert first.reload() == {
        "outcome": "refused",
        "generation": 1,
        "problems": [f"{server.file}: cannot be read: No such file or directory"],
    }
    time.sleep(0.3)
    server.write("right 2")
    eventually(lambda: first.in_force == second.in_force == (2, "right 2"))


def test_a_proposer_that_is_killed_blocks_nobody(server: Server) -> None:
    first, second = server.two(poll_s=0.05, watch_s=60)
    server.write("right, but hangs in 1")
    first.ask("reload")
    eventually(lambda: second.status["prepared"] == 1)
    time.sleep(0.2)
    assert second.in_force == (1, "right 1")
    assert second.status["state"] == "preparing"
    first.kill()
    eventually(lambda: second.in_force == (2, "right, but hangs in 1"))
    assert second.status["processes"] == {"2": 2}


def test_a_process_that_does_not_answer_refuses_it_for_all(server: Server) -> None:
    first, second = server.two(poll_s=0.05, watch_s=60, limit_s=0.5)
    server.write("right, but hangs in 2")
    problems = ["process 2 has not prepared it within 0.5 s"]
    assert first.reload() == {"outcome": "refused", "generation": 1, "problems": problems}
    eventually(lambda: (second.status["refused"] or {}).get("problems") == problems)
    server.write("right 3")
    assert second.reload()["outcome"] == "taken"
    assert first.in_force == second.in_force == (2, "right 3")


def test_a_commit_that_fails_shows_in_the_status(server: Server) -> None:
    first, second = server.two()
    server.write("right, but fails in 2")
    eventually(lambda: first.in_force[0] == 2 and second.status["state"] == "behind")
    eventually(lambda: first.status["processes"] == second.status["processes"] == {"1": 2, "2": 1})
    server.write("right 3")
    eventually(lambda: first.in_force == second.in_force == (3, "right 3"))


def test_a_late_process_starts_with_what_is_in_force_and_not_with_the_file(server: Server) -> None:
    first = server.process(1).up()
    for number in (2, 3):
        server.write(f"right {number}")
        assert first.reload()["outcome"] == "taken"
    server.write("wrong")
    eventually(lambda: first.status["refused"] is not None)
    second = server.process(2).up()
    assert second.in_force == (3, "right 3")
    assert second.status["prepared"] == 0
    assert second.status["refused"]["problems"] == ["wrong cannot be used", "it really cannot"]
    server.write("right 4")
    eventually(lambda: first.in_force == second.in_force == (4, "right 4"))


def test_a_process_that_starts_during_a_change_takes_part_in_it(server: Server) -> None:
    first, second = server.two(poll_s=0.05, watch_s=60)
    server.write("too much for 3, hangs in 2")
    first.ask("reload")
    eventually(lambda: second.status["prepared"] == 1)
    third = server.process(3, poll_s=0.05, watch_s=60).up()
    assert first._answer()["outcome"] == "refused"
    assert first.in_force == second.in_force == third.in_force == (1, "right 1")


def test_of_50_quick_changes_10_of_them_wrong_the_last_is_in_force_everywhere(server: Server) -> None:
    first, second = server.two(poll_s=0.02, watch_s=0.02)
    for number in range(1, 51):
        server.write(f"wrong {number}" if number % 5 == 1 else f"right {number}")
        time.sleep(random.uniform(0.0, 0.06))
    eventually(lambda: first.in_force[1] == second.in_force[1] == "right 50")
    assert first.in_force == second.in_force
    assert first.status["ended"] == second.status["ended"]
    assert first.in_force[0] == 1 + first.status["ended"].count("taken")


def test_processes_that_are_killed_at_any_moment_block_nobody(server: Server) -> None:
    options = {"poll_s": 0.01, "watch_s": 0.01}
    steady = server.process(0, **options).up()
    for number in range(8):
        other = server.process(number % 2 + 1, **options).up()
        server.write(f"right {number}")
        time.sleep(random.uniform(0.0, 0.08))
        other.kill()
    eventually(lambda: steady.in_force[1] == "right 7")
    late = server.process(9, **options).up()
    assert late.in_force == steady.in_force


def test_all_processes_gone_means_to_begin_anew(server: Server) -> None:
    first, second = server.two()
    server.write("right 2")
    assert first.reload()["outcome"] == "taken"
    first.kill()
    second.kill()
    server.write("right 3")
    assert server.process(1).up().in_force == (1, "right 3")


# In this process, where a test can look inside.


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[RunDirectory]:
    run = RunDirectory.open("server", tmp_path / "run")
    yield run
    run.close()


async def _prepare(content: bytes) -> bytes:
    if content == b"broken":
        raise ValueError("broken\nin two lines")
    if content == b"wrong":
        raise ReloadRefused(["config.yaml:1:1: wrong", "config.yaml:2:1: wrong again"])
    return content


async def _commit(content: bytes, generation: int) -> None:
    pass


async def test_the_log_says_what_is_in_force_and_what_is_wrong_but_no_content(
    run: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vllm_lora_router")
    file = tmp_path / "config.yaml"
    here = Reloading(run, file, _prepare, _commit, poll_s=0.02, watch_s=60)
    await here.begin(b"right")
    here.start()
    versions = []
    for content in (b"secret", b"wrong", b"broken"):
        file.write_bytes(content)
        versions.append(hashlib.sha256(content).hexdigest()[:8])
        await here.reload()
    await here.stop()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"configuration: generation 2 (version {versions[0]}) is in force",
        f"configuration: version {versions[1]} is refused:\nconfig.yaml:1:1: wrong\nconfig.yaml:2:1: wrong again",
        "configuration: an error while it was prepared",
        f"configuration: version {versions[2]} is refused:\nValueError: broken in two lines",
    ]


async def test_a_file_that_cannot_be_read_holds_up_no_votes(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "READ_S", 0.2)
    stuck, file = tmp_path / "stuck.yaml", tmp_path / "config.yaml"
    os.mkfifo(stuck)  # opening it waits, as that of a file does whose server does not answer
    file.write_bytes(b"right 2")
    first = Reloading(run, stuck, _prepare, _commit, process=1, poll_s=0.02, watch_s=0.02, limit_s=5)
    second = Reloading(run, file, _prepare, _commit, process=2, poll_s=0.02, watch_s=60, limit_s=5)
    try:
        for each in (first, second):
            await each.begin(b"right 1")
            each.start()
        await asyncio.sleep(0.1)
        assert (await second.reload()).outcome == "taken"
        assert first.generation == second.generation == 2
        refused = await first.reload()
        assert refused.problems == (f"{stuck}: cannot be read: no answer within 0.2 s",)
    finally:
        lets_go = os.open(stuck, os.O_RDWR)
        for each in (first, second):
            await each.stop()
        os.close(lets_go)


async def test_half_a_file_is_not_taken_for_the_whole(run: RunDirectory, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"right")
    prepared: list[bytes] = []
    taken = asyncio.Event()

    async def prepare(content: bytes) -> bytes:
        prepared.append(content)
        return content

    here = Reloading(run, file, prepare, _commit, ended=lambda outcome: taken.set(), poll_s=0.02, watch_s=0.3)
    await here.begin(b"right")
    here.start()
    with file.open("wb") as slow:
        for part in (b"one ", b"two ", b"three "):
            slow.write(part)
            slow.flush()
            await asyncio.sleep(0.2)
    await asyncio.wait_for(taken.wait(), 5)
    await here.stop()
    assert prepared == [b"one two three "]


async def test_what_one_process_prepared_and_another_refused_is_let_go(run: RunDirectory, tmp_path: Path) -> None:
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

    first = Reloading(run, file, slow, _commit, process=1, poll_s=0.02, watch_s=60)
    second = Reloading(run, file, refuse, _commit, process=2, poll_s=0.02, watch_s=60)
    for each in (first, second):
        await each.begin(b"right")
        each.start()
    result = await first.reload()
    assert (result.outcome, result.problems) == ("refused", ("MemoryError: does not fit",))
    await asyncio.wait_for(cancelled.wait(), 1)
    for each in (first, second):
        await each.stop()


async def test_a_process_that_stopped_is_not_waited_for(run: RunDirectory, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    first = Reloading(run, file, _prepare, _commit, process=1, poll_s=0.02, watch_s=60, limit_s=5)
    second = Reloading(run, file, _prepare, _commit, process=2, poll_s=0.02, watch_s=60, limit_s=5)
    for each in (first, second):
        await each.begin(b"right")
        each.start()
    await first.stop()
    file.write_bytes(b"right 2")
    assert (await second.reload()).outcome == "taken"
    assert second.status()["processes"] == {"2": 2}
    await second.stop()
