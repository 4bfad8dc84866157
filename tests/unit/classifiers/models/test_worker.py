"""The worker thread of a model."""

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

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


def test_a_call_that_never_returns_does_not_keep_the_process_alive() -> None:
    program = (
        "import threading\\n"
        "from vllm_lora_router.classifiers.models.worker import Worker\\n"
        "started = threading.Event()\\n"
        "Worker('test').submit(lambda: started.set() or threading.Event().wait())\\n"
        "started.wait()\\n"
    ).replace("\\n", "\n")
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
