"""The circuit breaker opens after consecutive failures and closes after a successful trial call."""

from vllm_lora_router.classifiers.mcp.circuit_breaker import CircuitBreaker, CircuitOpenError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def new_breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(max_failures=3, first_pause_s=1, max_pause_s=3, clock=clock)


def is_open(breaker: CircuitBreaker) -> bool:
    try:
        breaker.acquire()
    except CircuitOpenError:
        return True
    return False


def fail(breaker: CircuitBreaker, times: int = 1) -> list[float | None]:
    """Record failed calls and return the pauses that they caused."""
    return [breaker.record_failure(breaker.acquire()) for _ in range(times)]


def test_consecutive_failures_open_the_breaker() -> None:
    breaker = new_breaker(Clock())
    assert fail(breaker, 3) == [None, None, 1]
    assert is_open(breaker) and breaker.remaining_s == 1


def test_a_success_resets_the_count_of_failures() -> None:
    breaker = new_breaker(Clock())
    assert fail(breaker, 2) == [None, None] and not breaker.record_success(breaker.acquire())
    assert fail(breaker, 2) == [None, None] and not is_open(breaker)


def test_after_the_pause_a_single_trial_call_is_allowed() -> None:
    clock = Clock()
    breaker = new_breaker(clock)
    fail(breaker, 3)
    clock.now += 1
    trial = breaker.acquire()
    assert is_open(breaker)
    assert breaker.record_success(trial)
    assert not is_open(breaker) and not is_open(breaker)


def test_each_failed_trial_call_doubles_the_pause_up_to_a_maximum() -> None:
    clock = Clock()
    breaker = new_breaker(clock)
    (*_, pause) = fail(breaker, 3)
    pauses = [pause]
    for _ in range(3):
        clock.now += pauses[-1] or 0
        pauses += fail(breaker)
        assert is_open(breaker)
    assert pauses == [1, 2, 3, 3]
    clock.now += 3
    assert breaker.record_success(breaker.acquire())
    assert fail(breaker, 3) == [None, None, 1]


def test_calls_that_were_running_when_the_breaker_opened_do_not_extend_the_pause() -> None:
    clock = Clock()
    breaker = new_breaker(clock)
    running = [breaker.acquire() for _ in range(5)]
    assert [breaker.record_failure(call) for call in running] == [None, None, 1, None, None]
    assert breaker.remaining_s == 1 and breaker.times_opened == 1


def test_a_call_that_began_before_the_breaker_opened_is_not_its_trial() -> None:
    clock = Clock()
    breaker = new_breaker(clock)
    successful, failed, cancelled = (breaker.acquire() for _ in range(3))
    fail(breaker, 3)
    assert not breaker.record_success(successful) and is_open(breaker)  # during the pause
    clock.now += 1
    trial = breaker.acquire()
    assert not breaker.record_success(successful)
    assert breaker.record_failure(failed) is None
    breaker.record_cancelled(cancelled)
    assert is_open(breaker) and breaker.failures == 3  # the trial still runs and decides
    assert breaker.record_success(trial) and not is_open(breaker)


def test_a_call_that_began_before_the_breaker_closed_does_not_count_afterwards() -> None:
    clock = Clock()
    breaker = new_breaker(clock)
    running = [breaker.acquire() for _ in range(3)]
    fail(breaker, 3)
    clock.now += 1
    breaker.record_success(breaker.acquire())
    assert [breaker.record_failure(call) for call in running] == [None] * 3
    assert breaker.failures == 0 and not is_open(breaker)


def test_a_cancelled_trial_call_allows_another_one() -> None:
    clock = Clock()
    breaker = new_breaker(clock)
    fail(breaker, 3)
    clock.now += 1
    breaker.record_cancelled(breaker.acquire())
    assert not is_open(breaker)
