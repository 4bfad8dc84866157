"""The worker thread of a model."""

import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest

from vllm_lora_router.classifiers import UnavailableError
from vllm_lora_router.classifiers.models import worker as module
from vllm_lora_router.classifiers.models.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test")
    yield worker
    worker.close()


def test_calls_run_one_at_a_time_in_order_on_the_worker_thread(worker: Worker) -> None:
    ran: list[int] = []

    def call(number: int) -> str:
        ran.append(number)
        return threading.current_thread().name

    futures = [worker.submit(lambda number=number: call(number)) for number in range(3)]
    names = [future.result(5) for future in futures]
    assert ran == [0, 1, 2] and set(names) == {"lora-router-test"}


def test_an_exception_of_a_call_is_raised_to_the_caller(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        worker.run_blocking(lambda: 1 // 0)
    assert worker.run_blocking(lambda: 5) == 5


def test_an_exit_of_a_call_fails_only_that_call(worker: Worker) -> None:
    with pytest.raises(UnavailableError, match="the model call failed: SystemExit: 3"):
        worker.submit(lambda: sys.exit(3)).result(60)
    assert worker.submit(lambda: 5).result(60) == 5


def test_a_call_that_is_cancelled_before_it_starts_never_runs(worker: Worker) -> None:
    finish, ran = threading.Event(), []
    first = worker.submit(lambda: finish.wait(5))
    cancelled = worker.submit(lambda: ran.append("cancelled"))
    last = worker.submit(lambda: ran.append("last"))
    assert cancelled.cancel()
    finish.set()
    assert first.result(5)
    last.result(5)
    assert ran == ["last"]


def test_prepare_runs_once_on_the_thread_before_the_first_call() -> None:
    prepared: list[str] = []
    worker = Worker("test", prepare=lambda: prepared.append(threading.current_thread().name))
    assert [worker.run_blocking(lambda: len(prepared)) for _ in range(2)] == [1, 1]
    assert prepared == ["lora-router-test"]
    worker.close()


def test_a_failure_of_prepare_fails_every_call_instead_of_leaving_it_waiting() -> None:
    def fail() -> None:
        raise SystemExit("no such device")

    worker = Worker("test", prepare=fail)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="the model call failed: SystemExit: no such device"):
            worker.submit(lambda: 1).result(60)
    assert worker.is_alive
    worker.close()


def test_a_call_is_stuck_only_after_the_time_limit(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_S", 0.1)
    finish, started = threading.Event(), threading.Event()
    call = worker.submit(lambda: started.set() or finish.wait(5))
    assert started.wait(5) and worker.stuck_s is None
    assert not threading.Event().wait(0.15)
    assert worker.stuck_s is not None and worker.stuck_s > 0.1
    finish.set()
    assert call.result(5)
    worker.run_blocking(lambda: None)
    assert worker.stuck_s is None


def test_the_thread_ends_with_the_last_reference_to_the_worker() -> None:
    worker = Worker("gone")
    worker.run_blocking(lambda: None)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "lora-router-gone")
    del worker
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def run_program(program: str) -> "subprocess.CompletedProcess[str]":
    lines = "from vllm_lora_router.classifiers.models import worker as module\n" + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, check=False)


def test_a_call_that_never_returns_does_not_keep_the_process_alive() -> None:
    program = """
        import threading
        module.STUCK_S = 0.1
        started = threading.Event()
        module.Worker("test").submit(lambda: started.set() or threading.Event().wait())
        started.wait()
    """
    assert run_program(program).returncode == 0


@pytest.mark.parametrize("worker", ["worker", "module.Worker('other')"])  # with and without a reference at the exit
def test_process_waits_for_the_running_call_and_drops_queued_ones(worker: str) -> None:
    # Without the wait, torch ends the process with "terminate called without an active exception" and status 134.
    program = f"""
        import sys, threading, time, torch
        started, matrix = threading.Event(), torch.rand(64, 64)

        def multiply():
            started.set()
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                matrix.mm(matrix)
            print("returned", flush=True)

        worker = module.Worker("test")
        used = {worker}
        used.submit(multiply)
        used.submit(multiply)
        started.wait()
        del used
        sys.exit(3)
    """
    result = run_program(program)
    assert (result.returncode, result.stdout, result.stderr) == (3, "returned\n", "")
