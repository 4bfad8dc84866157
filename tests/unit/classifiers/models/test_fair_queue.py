"""The fair queue: shares of service and of places, order inside a flow, and nothing left behind."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lora_router.classifiers.models.fair_queue import MAX_IDLE_FLOWS, FairQueue, Flow

Item = tuple[Flow, int, int]  # flow, number within the flow, length

examples = settings(max_examples=200, deadline=None, derandomize=True, database=None)
flows = st.sampled_from([None, "a", "b", "c"])


def item(flow: Flow, number: int = 0, length: int = 1) -> Item:
    return flow, number, length


def distance(first: Item, other: Item) -> int:
    return abs(first[2] - other[2])


def take(queue: FairQueue[Item], size: int = 1) -> list[Item]:
    """Take a batch and charge each flow the length of its items."""
    batch = [item for _, item in queue.in_order(distance)][:size]
    for flow, number, length in batch:
        queue.remove(flow, (flow, number, length), length)
    return batch


def fill(queue: FairQueue[Item], flow: Flow, count: int, length: int = 1) -> None:
    for number in range(count):
        queue.add(flow, item(flow, number, length))


def test_a_flow_with_one_item_is_next_although_another_flow_has_hundreds() -> None:
    queue: FairQueue[Item] = FairQueue(256)
    fill(queue, "busy", 200)
    take(queue)
    queue.add("quiet", item("quiet"))
    assert "quiet" in [flow for flow, _, _ in take(queue) + take(queue)]


def test_requests_without_a_flow_are_served_last_and_lose_their_places_first() -> None:
    queue: FairQueue[Item] = FairQueue(10)
    fill(queue, None, 10)
    assert queue.add(None, item(None, 10)) == item(None, 10)  # the newcomer
    dropped = [queue.add("paying", item("paying", number)) for number in range(3)]
    assert dropped == [item(None, 9), item(None, 8), item(None, 7)]


def test_requests_without_a_flow_lose_their_places_before_the_flow_with_the_most() -> None:
    queue: FairQueue[Item] = FairQueue(10)
    fill(queue, "busy", 8)
    fill(queue, None, 2)
    assert [queue.add("busy", item("busy", number)) for number in (8, 9)] == [item(None, 1), item(None, 0)]
    assert queue.add("busy", item("busy", 10)) == item("busy", 10)
    assert queue.add("other", item("other")) == item("busy", 9)


def test_each_flow_gets_an_equal_share_of_the_places_of_a_full_queue() -> None:
    queue: FairQueue[Item] = FairQueue(12)
    fill(queue, "a", 12)
    fill(queue, "b", 12)
    fill(queue, "c", 12)
    assert Counter(flow for flow, _, _ in take(queue, 12)) == {"a": 4, "b": 4, "c": 4}


def test_a_batch_has_items_of_every_flow_before_a_second_item_of_any() -> None:
    queue: FairQueue[Item] = FairQueue(256)
    fill(queue, "a", 100)
    fill(queue, "b", 2)
    fill(queue, "c", 1)
    fill(queue, None, 50)
    assert [flow for flow, _, _ in take(queue, 6)] == ["a", "b", "c", "a", "b", "a"]


def test_service_is_shared_by_length_and_not_by_count() -> None:
    queue: FairQueue[Item] = FairQueue(2_000)
    fill(queue, "long", 100, 10)
    fill(queue, "short", 1_000, 1)
    served = Counter[Flow]()
    for _ in range(220):
        ((flow, _, length),) = take(queue)
        served[flow] += length
    assert abs(served["long"] - served["short"]) <= 10


def test_an_idle_flow_gets_no_credit() -> None:
    queue: FairQueue[Item] = FairQueue(2_000)
    fill(queue, "busy", 1_000)
    for _ in range(500):
        take(queue)
    fill(queue, "late", 500)
    assert [flow for flow, _, _ in (take(queue)[0] for _ in range(100))].count("busy") in range(49, 52)


def test_a_flow_that_leaves_and_returns_is_still_charged_for_its_service() -> None:
    queue: FairQueue[Item] = FairQueue(100)
    fill(queue, "waiting", 60, length=1)
    served: list[Flow] = []
    for _ in range(44):
        if served[-1:] != ["waiting"]:
            queue.add("returning", item("returning", 0, 10))
        served.append(take(queue)[0][0])
    assert served.count("returning") in (4, 5)  # a tenth of the items, because each takes ten times as long


def test_the_number_of_remembered_flows_is_bounded() -> None:
    queue: FairQueue[Item] = FairQueue(10)
    queue.add("waiting", item("waiting"))
    for number in range(MAX_IDLE_FLOWS * 2):
        queue.add(number, item(number))
        queue.remove(number, item(number), 1)
    assert len(queue._service) <= MAX_IDLE_FLOWS + 2  # pyright: ignore[reportPrivateUsage]


@examples
@given(st.lists(st.tuples(flows, st.integers(1, 50)), max_size=60), st.integers(1, 20), st.integers(1, 8))
def test_items_of_a_flow_with_equal_lengths_keep_their_order_and_none_is_lost(
    arrivals: list[tuple[Flow, int]], limit: int, size: int
) -> None:
    queue: FairQueue[Item] = FairQueue(limit)
    accepted: list[Item] = []
    for number, (flow, _) in enumerate(arrivals):
        new = item(flow, number)
        accepted.append(new)
        if (dropped := queue.add(flow, new)) is not None:
            accepted.remove(dropped)
        assert len(queue) == len(accepted) <= limit
    served: list[Item] = []
    while len(queue):
        served += take(queue, size)
    assert sorted(served, key=str) == sorted(accepted, key=str)
    for flow in (None, "a", "b", "c"):
        numbers = [number for of_flow, number, _ in served if of_flow == flow]
        assert numbers == sorted(numbers)


@examples
@given(
    st.lists(st.tuples(flows, st.integers(1, 50), st.integers(0, 3)), max_size=80), st.randoms(use_true_random=False)
)
def test_cancellation_leaves_nothing_behind(arrivals: list[tuple[Flow, int, int]], random: random.Random) -> None:
    queue: FairQueue[Item] = FairQueue(20)
    waiting: set[Item] = set()
    for number, (flow, length, action) in enumerate(arrivals):
        new = item(flow, number, length)
        queue.add(flow, new)
        if action == 0:
            leaving = random.choice(sorted({*waiting, new}, key=str))
            queue.remove(leaving[0], leaving)
        elif action == 1:
            take(queue, 3)
        waiting = {item for _, item in queue.in_order(distance)}
        assert len(waiting) == len(queue) <= 20
    for leaving in sorted(waiting, key=str):
        queue.remove(leaving[0], leaving)
        queue.remove(leaving[0], leaving)  # again, as a client that leaves after its item was dropped
    assert len(queue) == 0
    assert not queue._waiting and not queue._service  # pyright: ignore[reportPrivateUsage]


@examples
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 50)), min_size=1, max_size=60),
    st.integers(1, 50),
)
def test_no_flow_starves(arrivals: list[tuple[str, int]], length: int) -> None:
    # However the others arrive, a flow waits for at most as much service as each other flow gets in one turn.
    queue: FairQueue[Item] = FairQueue(1_000)
    fill(queue, "hog", 100, 50)
    take(queue)
    queue.add("paying", item("paying", 0, length))
    served: list[Item] = []
    pending = list(enumerate(arrivals))
    while not any(flow == "paying" for flow, _, _ in served):
        for number, (flow, other_length) in pending[:2]:
            queue.add(flow, item(flow, number, other_length))
        pending = pending[2:]
        served += take(queue)
    assert len(served) <= 1 + len({"hog", "a", "b", "c"})
