"""The same user, the same arm: draws by a hash of what stays the same, so that no process keeps or shares anything."""

import hashlib
import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from vllm_lora_router.types import Assignment, Client, Share


class Sticky(Struct, frozen=True):
    """What stays the same for the same user."""

    key: str  # a digest, 32 hex digits: who it is cannot be read from it without the salt
    by: str  # where it was found: a place of `router.ab.key`, or "request" when nothing stays the same


def sticky(
    client: Client, beginning: str, places: Sequence[str], salt: str, request: str, known: str | None = None
) -> Sticky:
    """The first of `places` that says something.

    Args:
        beginning: the conversation's first words; the same of two clients are two conversations.
        request: what to go by where no place says anything, such as an id: then the draw is this request's alone.
        known: the conversation's key, where its beginning does not come with the request.
    """
    for place in places:
        if place == "conversation":
            if known is not None:
                return Sticky(known, place)
            if beginning:
                return Sticky(
                    digest(salt, place, client.api_key_fingerprint or "", client.tenant or "", beginning), place
                )
        elif value := client.ab_keys.get(place):
            # The same user may be named in another place by another API.
            return Sticky(digest(salt, value), place)
    return Sticky(digest(salt, request), "request")


def digest(salt: str, *values: str) -> str:
    """32 hex digits that say nothing of the values to whoever does not know the salt."""
    hashed = hashlib.blake2b(key=hashlib.sha256(salt.encode()).digest(), digest_size=16)
    for value in values:
        content = value.encode("utf-8", "surrogatepass")
        hashed.update(len(content).to_bytes(8, "big") + content)
    return hashed.hexdigest()


def at(key: str, *experiment: str) -> float:
    """A number between 0 and 1, neither of them, that is the key's own in this experiment and none other."""
    hashed = hashlib.blake2b(bytes.fromhex(key), digest_size=8)
    for name in experiment:
        content = name.encode()
        hashed.update(len(content).to_bytes(8, "big") + content)
    # 52 bits, so that neither end is ever reached by rounding.
    return ((int.from_bytes(hashed.digest(), "big") >> 12) + 0.5) / 2**52


def order(key: str, category: str, weights: Mapping[str, float]) -> list[str]:
    """The arms in the order in which they serve this key; the first is the one that was drawn.

    Each arm's place depends on its own weight and nothing else (a race of exponential times, "weighted rendezvous
    hashing"): a changed weight moves keys from or to that arm alone, and a new arm only takes some.
    """
    return sorted(weights, key=lambda arm: _time(key, category, arm, weights[arm]))


def draw(found: Sticky, category: str, weights: Mapping[str, float]) -> Assignment:
    """The arm of a category's A/B test."""
    return Assignment(category, found.key, found.by, order(found.key, category, weights)[0], weights)


def share_of(found: Sticky, share: float) -> Share:
    """Whether the key is among those that are routed; a larger share takes all of a smaller one along."""
    return Share(found.key, found.by, share, at(found.key, "share"))


def _time(key: str, category: str, arm: str, weight: float) -> float:
    return -math.log(at(key, "arm", category, arm)) / weight if weight > 0 else math.inf
