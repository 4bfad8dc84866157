"""The same user gets the same arm in every process and after every restart."""

import subprocess
import sys
from collections import Counter

import pytest

from vllm_lora_router.routing.ab_assignment import (
    AssignmentKey,
    assign_arm,
    assignment_key,
    digest,
    hash_position,
    rank_arms,
    traffic_share,
)
from vllm_lora_router.types import Client

KEYS = [digest("", f"user {number}") for number in range(100_000)]
WEIGHTS = {"a": 70.0, "b": 20.0, "c": 10.0}
SOURCES = ("safety_identifier", "metadata.user_id", "user", "header:x-user", "conversation")


def arm(key: str, category: str, weights: dict[str, float]) -> str:
    return rank_arms(key, category, weights)[0]


def test_each_arm_gets_a_share_of_users_by_its_weight() -> None:
    """With 100,000 users, each share is within half a percentage point."""
    got = Counter(arm(key, "medical", WEIGHTS) for key in KEYS)
    for name, weight in WEIGHTS.items():
        assert abs(got[name] / len(KEYS) - weight / 100) < 0.005, got


def test_a_new_arm_takes_keys_and_moves_no_key_between_other_arms() -> None:
    for key in KEYS[:20_000]:
        before, after = arm(key, "medical", WEIGHTS), arm(key, "medical", {**WEIGHTS, "d": 25.0})
        assert after in (before, "d")


def test_a_changed_weight_moves_only_keys_of_that_arm() -> None:
    moved = Counter(
        (before, after)
        for key in KEYS
        if (before := arm(key, "medical", WEIGHTS)) != (after := arm(key, "medical", {**WEIGHTS, "c": 20.0}))
    )
    assert {after for _, after in moved} == {"c"}
    # The weight of c was 10 of 100 and is 20 of 110. The keys that it gained are the ones that moved.
    assert abs(moved.total() / len(KEYS) - (20 / 110 - 0.1)) < 0.005


def test_assignments_of_different_experiments_are_independent() -> None:
    """With two arms of 10 % in different tests, 1 % of the users are in both."""
    weights = {"new": 10.0, "old": 90.0}
    both = sum(arm(key, "medical", weights) == arm(key, "legal", weights) == "new" for key in KEYS)
    assert 0.008 < both / len(KEYS) < 0.012


def test_the_traffic_share_and_the_arm_are_independent() -> None:
    routed = [key for key in KEYS if hash_position(key, "share") < 0.1]
    assert 0.095 < len(routed) / len(KEYS) < 0.105
    got = Counter(arm(key, "medical", WEIGHTS) for key in routed)
    assert abs(got["c"] / len(routed) - 0.1) < 0.02


def test_a_larger_traffic_share_includes_a_smaller_one() -> None:
    for key in KEYS[:5000]:
        shares = [traffic_share(AssignmentKey(key, "user"), share) for share in (0.0, 0.1, 0.5, 1.0)]
        routed = [share.position < share.share for share in shares]
        assert routed == sorted(routed) and routed[0] is False and routed[-1] is True


def test_an_arm_without_weight_is_last_and_never_assigned() -> None:
    for key in KEYS[:2000]:
        assert rank_arms(key, "medical", {"none": 0.0, "a": 1e-9, "b": 1.0})[-1] == "none"


def test_another_process_assigns_the_same_arms() -> None:
    code = (
        "from vllm_lora_router.routing.ab_assignment import digest, rank_arms\n"
        f"for n in range({len(KEYS)}): print(rank_arms(digest('', f'user {{n}}'), 'medical', {WEIGHTS!r})[0])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.split() == [arm(key, "medical", WEIGHTS) for key in KEYS]


def test_assignments_do_not_change_between_releases() -> None:
    """A changed hash would move users of all running experiments."""
    assert digest("", "alice") == "13a54e0db4f9350a6e6dd50e5378e12e"
    assert "".join(arm(key, "medical", WEIGHTS) for key in KEYS[:24]) == "bcacbacaaabbaaaabaababaa"


def test_the_first_source_with_a_value_is_used() -> None:
    ab_keys = {"user": digest("", "u"), "header:x-user": digest("", "h")}
    key = assignment_key(Client(ab_keys=ab_keys), "hello", SOURCES, "", "request")
    assert (key.source, key.key) == ("user", digest("", "u"))
    assert (
        assignment_key(Client(ab_keys={"header:x-user": digest("", "h")}), "hello", SOURCES, "", "request").source
        == "header:x-user"
    )
    assert assignment_key(Client(), "hello", SOURCES, "", "request").source == "conversation"
    assert assignment_key(Client(), "", SOURCES, "", "request") == AssignmentKey(digest("", "request"), "request")
    assert assignment_key(Client(ab_keys=ab_keys), "hello", ["conversation"], "", "request").source == "conversation"


def test_a_user_has_the_same_key_in_every_api() -> None:
    names = ("safety_identifier", "metadata.user_id", "user", "header:x-user")
    key = digest("", "u")
    assert {assignment_key(Client(ab_keys={name: key}), "", SOURCES, "", "").key for name in names} == {key}


def test_the_same_first_message_of_different_clients_gives_different_keys() -> None:
    clients = [
        Client(),
        Client(api_key_fingerprint="a"),
        Client(api_key_fingerprint="b"),
        Client(tenant="a"),
        Client("b", "a"),
    ]
    assert len({assignment_key(client, "hello", SOURCES, "", "").key for client in clients}) == len(clients)
    assert (
        assignment_key(Client(), "hello", SOURCES, "", "").key
        != assignment_key(Client(), "hello!", SOURCES, "", "").key
    )


def test_another_salt_gives_independent_assignments() -> None:
    same = sum(arm(digest("x", f"user {n}"), "m", WEIGHTS) == arm(KEYS[n], "m", WEIGHTS) for n in range(20_000))
    assert abs(same / 20_000 - (0.7**2 + 0.2**2 + 0.1**2)) < 0.02


@pytest.mark.parametrize("value", ["", "\ud83d", "x" * 1_000_000, "\0"])
def test_a_key_can_be_any_text(value: str) -> None:
    assignment = assign_arm(
        AssignmentKey(digest("", value), "user"),
        "Größe/量",
        {"a": 1.0, "\ud83d".encode("utf-8", "replace").decode(): 1.0},
    )
    assert assignment.arm in assignment.weights
