"""The same user gets the same arm, everywhere and always."""

import subprocess
import sys
from collections import Counter

import pytest

from vllm_lora_router.routing.ab_assignment import Sticky, at, digest, draw, order, share_of, sticky
from vllm_lora_router.types import Client

KEYS = [digest("", f"user {number}") for number in range(100_000)]
WEIGHTS = {"a": 70.0, "b": 20.0, "c": 10.0}
PLACES = ("safety_identifier", "metadata.user_id", "user", "header:x-user", "conversation")


def arm(key: str, category: str, weights: dict[str, float]) -> str:
    return order(key, category, weights)[0]


def test_each_arm_gets_its_share() -> None:
    """Of 100,000 users each share is within half a percentage point."""
    got = Counter(arm(key, "medical", WEIGHTS) for key in KEYS)
    for name, weight in WEIGHTS.items():
        assert abs(got[name] / len(KEYS) - weight / 100) < 0.005, got


def test_another_arm_takes_keys_and_moves_none_between_the_others() -> None:
    for key in KEYS[:20_000]:
        before, after = arm(key, "medical", WEIGHTS), arm(key, "medical", {**WEIGHTS, "d": 25.0})
        assert after in (before, "d")


def test_a_changed_weight_moves_only_the_share_that_must_move() -> None:
    moved = Counter(
        (before, after)
        for key in KEYS
        if (before := arm(key, "medical", WEIGHTS)) != (after := arm(key, "medical", {**WEIGHTS, "c": 20.0}))
    )
    assert {after for _, after in moved} == {"c"}
    # c had 10 of 100 and has 20 of 110: what it gained is what moved.
    assert abs(moved.total() / len(KEYS) - (20 / 110 - 0.1)) < 0.005


def test_one_experiments_arm_says_nothing_of_anothers() -> None:
    """Of two tests' arms of 10 % each, 1 % of the users are in both."""
    weights = {"new": 10.0, "old": 90.0}
    both = sum(arm(key, "medical", weights) == arm(key, "legal", weights) == "new" for key in KEYS)
    assert 0.008 < both / len(KEYS) < 0.012


def test_who_is_routed_says_nothing_of_the_arm() -> None:
    routed = [key for key in KEYS if at(key, "share") < 0.1]
    assert 0.095 < len(routed) / len(KEYS) < 0.105
    got = Counter(arm(key, "medical", WEIGHTS) for key in routed)
    assert abs(got["c"] / len(routed) - 0.1) < 0.02


def test_a_larger_share_takes_all_of_a_smaller_one_along() -> None:
    for key in KEYS[:5000]:
        shares = [share_of(Sticky(key, "user"), share) for share in (0.0, 0.1, 0.5, 1.0)]
        routed = [one.position < one.share for one in shares]
        assert routed == sorted(routed) and routed[0] is False and routed[-1] is True


def test_an_arm_without_weight_is_never_drawn_and_stands_last() -> None:
    for key in KEYS[:2000]:
        assert order(key, "medical", {"none": 0.0, "a": 1e-9, "b": 1.0})[-1] == "none"


def test_another_process_agrees_on_every_key() -> None:
    code = (
        "from vllm_lora_router.routing.ab_assignment import digest, order\n"
        f"for n in range({len(KEYS)}): print(order(digest('', f'user {{n}}'), 'medical', {WEIGHTS!r})[0])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.split() == [arm(key, "medical", WEIGHTS) for key in KEYS]


def test_a_draw_never_changes_between_releases() -> None:
    """Whoever changes the hash moves every user of every experiment that runs."""
    assert digest("", "alice") == "13a54e0db4f9350a6e6dd50e5378e12e"
    assert "".join(arm(key, "medical", WEIGHTS) for key in KEYS[:24]) == "bcacbacaaabbaaaabaababaa"


def test_the_first_place_that_says_something_counts() -> None:
    said = {"user": "u", "header:x-user": "h"}
    found = sticky(Client(ab_keys=said), "hello", PLACES, "", "request")
    assert (found.by, found.key) == ("user", digest("", "u"))
    assert sticky(Client(ab_keys={"header:x-user": "h"}), "hello", PLACES, "", "request").by == "header:x-user"
    assert sticky(Client(), "hello", PLACES, "", "request").by == "conversation"
    assert sticky(Client(), "", PLACES, "", "request") == Sticky(digest("", "request"), "request")
    assert sticky(Client(ab_keys=said), "hello", ["conversation"], "", "request").by == "conversation"


def test_one_user_is_the_same_in_every_api() -> None:
    names = ("safety_identifier", "metadata.user_id", "user", "header:x-user")
    assert len({sticky(Client(ab_keys={name: "u"}), "", PLACES, "", "").key for name in names}) == 1


def test_the_same_beginning_of_two_clients_is_two_conversations() -> None:
    callers = [
        Client(),
        Client(api_key_fingerprint="a"),
        Client(api_key_fingerprint="b"),
        Client(tenant="a"),
        Client("b", "a"),
    ]
    assert len({sticky(caller, "hello", PLACES, "", "").key for caller in callers}) == len(callers)
    assert sticky(Client(), "hello", PLACES, "", "").key != sticky(Client(), "hello!", PLACES, "", "").key


def test_another_salt_draws_everything_anew() -> None:
    same = sum(arm(digest("x", f"user {n}"), "m", WEIGHTS) == arm(KEYS[n], "m", WEIGHTS) for n in range(20_000))
    assert abs(same / 20_000 - (0.7**2 + 0.2**2 + 0.1**2)) < 0.02


@pytest.mark.parametrize("value", ["", "\ud83d", "x" * 1_000_000, "\0"])
def test_a_key_may_be_any_text(value: str) -> None:
    found = draw(
        Sticky(digest("", value), "user"), "Größe/量", {"a": 1.0, "\ud83d".encode("utf-8", "replace").decode(): 1.0}
    )
    assert found.arm in found.weights
