"""The thread on which a model runs."""

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


def test_calls_run_one_at_a_time_in_the_order_they_came_off_the_callers_thread(worker: Worker) -> None:
    ran: list[int] = []

    def call(number: int) -> str:
        ran.append(number)
        return threading.current_thread().name

    names = [one.result(5) for one in [worker.submit(lambda number=number: call(number)) for number in range(3)]]
    assert ran == [0, 1, 2] and set(names) == {"lora-router-test"}


def test_an_error_of_a_call_is_the_callers(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        worker.run_blocking(lambda: 1 // 0)
    assert worker.run_blocking(lambda: 5) == 5


def test_a_call_that_was_given_up_before_it_began_never_runs(worker: Worker) -> None:
    go, ran = threading.Event(), []
    first = worker.submit(lambda: go.wait(5))
    given_up = worker.submit(lambda: ran.append("given up"))
    last = worker.submit(lambda: ran.append("last"))
    assert given_up.cancel()
    go.set()
    assert first.result(5)
    last.result(5)
    assert ran == ["last"]


def test_the_thread_is_prepared_once_before_its_first_call() -> None:
    prepared: list[str] = []
    worker = Worker("test", prepare=lambda: prepared.append(threading.current_thread().name))
    assert [worker.run_blocking(lambda: len(prepared)) for _ in range(2)] == [1, 1]
    assert prepared == ["lora-router-test"]
    worker.close()


def test_a_call_that_does_not_return_is_told_from_one_that_takes_its_time(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STUCK_S", 0.1)
    go, begun = threading.Event(), threading.Event()
    call = worker.submit(lambda: begun.set() or go.wait(5))
    assert begun.wait(5) and worker.stuck_s is None
    assert not threading.Event().wait(0.15)
    assert worker.stuck_s is not None and worker.stuck_s > 0.1
    go.set()
    assert call.result(5)
    worker.run_blocking(lambda: None)
    assert worker.stuck_s is None


def test_the_thread_ends_with_the_model_that_it_runs() -> None:
    worker = Worker("gone")
    worker.run_blocking(lambda: None)
    (thread,) = (one for one in threading.enumerate() if one.name == "lora-router-gone")
    del worker
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_a_call_that_never_returns_keeps_no_process_from_ending() -> None:
    program = (
        "import threading\\n"
        "from vllm_lora_router.classifiers.models.worker import Worker\\n"
        "begun = threading.Event()\\n"
        "Worker('test').submit(lambda: begun.set() or threading.Event().wait())\\n"
        "begun.wait()\\n"
    ).replace("\\n", "\n")
    assert subprocess.run([sys.executable, "-c", program], timeout=20, check=False).returncode == 0
