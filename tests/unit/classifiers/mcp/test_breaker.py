"""Who fails again and again is left alone for a while, and then tried once."""

from vllm_lora_router.classifiers.mcp.circuit_breaker import Breaker, Open


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock) -> Breaker:
    return Breaker(most=3, first_s=1, longest_s=3, clock=clock)


def is_open(one: Breaker) -> bool:
    try:
        one.enter()
    except Open:
        return True
    return False


def fail(one: Breaker, times: int = 1) -> list[float | None]:
    found: list[float | None] = []
    for _ in range(times):
        assert not is_open(one)
        found.append(one.failed())
    return found


def test_it_opens_after_some_failures_in_a_row() -> None:
    one = breaker(Clock())
    assert fail(one, 3) == [None, None, 1]
    assert is_open(one) and one.left_s == 1


def test_a_success_in_between_begins_anew() -> None:
    one = breaker(Clock())
    assert fail(one, 2) == [None, None] and not one.succeeded()
    assert fail(one, 2) == [None, None] and not is_open(one)


def test_after_its_time_one_is_let_through_and_no_other() -> None:
    clock = Clock()
    one = breaker(clock)
    fail(one, 3)
    clock.now += 1
    assert not is_open(one) and is_open(one)
    assert one.succeeded()
    assert not is_open(one) and not is_open(one)


def test_a_try_that_fails_opens_it_for_twice_as_long_up_to_a_limit() -> None:
    clock = Clock()
    one = breaker(clock)
    (*_, pause) = fail(one, 3)
    pauses = [pause]
    for _ in range(3):
        clock.now += pauses[-1] or 0
        pauses += fail(one)
        assert is_open(one)
    assert pauses == [1, 2, 3, 3]
    clock.now += 3
    assert not is_open(one) and one.succeeded()
    assert fail(one, 3) == [None, None, 1]


def test_those_that_were_under_way_when_it_opened_make_it_no_longer() -> None:
    clock = Clock()
    one = breaker(clock)
    for _ in range(5):
        assert not is_open(one)
    assert [one.failed() for _ in range(5)] == [None, None, 1, None, None]
    assert one.left_s == 1 and one.opened == 1


def test_a_try_that_was_given_up_lets_the_next_one_through() -> None:
    clock = Clock()
    one = breaker(clock)
    fail(one, 3)
    clock.now += 1
    assert not is_open(one)
    one.gave_up()
    assert not is_open(one)
