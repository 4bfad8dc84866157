"""A/B assignment: the same user gets the same arm, computed from a hash, so that processes need no shared state."""

import hashlib
import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from vllm_lora_router.types import Assignment, Client, Share

# The hash runs on the event loop. Conversations whose first message begins with the same characters get the same arm.
MAX_BEGINNING_CHARACTERS = 65_536


class AssignmentKey(Struct, frozen=True):
    """A key that stays the same for the same user."""

    key: str  # digest of 32 hex digits, which does not reveal the user without the salt
    source: str  # an entry of `router.ab.key`, or "request" if the request has none of them


def assignment_key(
    client: Client, beginning: str, sources: Sequence[str], salt: str, request: str, known: str | None = None
) -> AssignmentKey:
    """Return the key from the first source that the request has.

    Args:
        beginning: The first user message of the conversation. The same text from two clients is two conversations.
        sources: The entries of `router.ab.key`.
        request: An id of the request, used if it has none of the sources. The assignment then holds for this request
            only.
        known: The key of the conversation, if the request does not contain its first message.
    """
    for source in sources:
        if source == "conversation":
            if known is not None:
                return AssignmentKey(known, source)
            if beginning:
                text = beginning[:MAX_BEGINNING_CHARACTERS]
                key = digest(salt, source, client.api_key_fingerprint or "", client.tenant or "", text)
                return AssignmentKey(key, source)
        elif key := client.ab_keys.get(source):
            return AssignmentKey(key, source)
    return AssignmentKey(digest(salt, request), "request")


def digest(salt: str, *values: str) -> str:
    """Return 32 hex digits that reveal nothing about the values without the salt."""
    hashed = hashlib.blake2b(key=hashlib.sha256(salt.encode()).digest(), digest_size=16)
    for value in values:
        content = value.encode("utf-8", "surrogatepass")
        hashed.update(len(content).to_bytes(8, "big") + content)
    return hashed.hexdigest()


def hash_position(key: str, *experiment: str) -> float:
    """Return a number between 0 and 1, both excluded, that depends on the key and the experiment."""
    hashed = hashlib.blake2b(bytes.fromhex(key), digest_size=8)
    for name in experiment:
        content = name.encode()
        hashed.update(len(content).to_bytes(8, "big") + content)
    # 52 bits, so that rounding never gives 0 or 1.
    return ((int.from_bytes(hashed.digest(), "big") >> 12) + 0.5) / 2**52


def rank_arms(key: str, category: str, weights: Mapping[str, float]) -> list[str]:
    """Return the arms in the order in which they serve this key. The first arm is the assigned one.

    The position of an arm depends only on its own weight (weighted rendezvous hashing, a race of exponential times).
    Changing a weight therefore moves keys only to or from that arm, and a new arm only takes keys from others.
    """
    return sorted(weights, key=lambda arm: _arrival_time(key, category, arm, weights[arm]))


def assign_arm(key: AssignmentKey, category: str, weights: Mapping[str, float]) -> Assignment:
    """Return the arm of a category's A/B test for a key."""
    return Assignment(category, key.key, key.source, rank_arms(key.key, category, weights)[0], weights)


def traffic_share(key: AssignmentKey, share: float) -> Share:
    """Return whether the key is routed. A larger share includes all keys of a smaller one."""
    return Share(key.key, key.source, share, hash_position(key.key, "share"))


def _arrival_time(key: str, category: str, arm: str, weight: float) -> float:
    return -math.log(hash_position(key, "arm", category, arm)) / weight if weight > 0 else math.inf
