"""A conversation stays with what it is about: "commit it" and "why?" need no category of their own."""

import hashlib
from collections.abc import Iterable, Sequence

from cachetools import LRUCache
from msgspec import Struct

from vllm_lora_router.types import ActiveTopic, Classification, Method, Query, Step, Turn

# Answers to earlier turns, and conversations whose turns are not in the request, that one process remembers.
REMEMBERED = 10_000
# Of these, so many texts of no more characters may wait to be kept.
WAITING, SHORT = 64, 4096


class Found(Struct, frozen=True):
    """What a method was sure of."""

    method: Method
    classification: Classification


def found(steps: Sequence[Step]) -> Found | None:
    """What the methods found in one turn; None when none was sure."""
    last = steps[-1] if steps else None
    if last is None or last.classification is None or not last.classification.accepted:
        return None
    return Found(last.method, last.classification)


def told(
    earlier: Iterable[tuple[int, Found]], before: ActiveTopic | None, margin: float
) -> tuple[ActiveTopic | None, list[Turn]]:
    """What the conversation was about before its last turn, and the turns that say so.

    Args:
        earlier: oldest first, each with how many turns it stands before the last one.
    """
    held, turns = before, list[Turn]()
    for back, one in earlier:
        category = one.classification.category
        assert category is not None, "who is sure names one"
        score, wish = one.classification.score, one.classification.overrides
        turn = Turn(back, category, score, one.method, score_of(one, held), wish)
        turns.append(turn)
        held = follow(held, turn, margin)
    return held, turns


def follow(held: ActiveTopic | None, turn: Turn, margin: float) -> ActiveTopic:
    """What the conversation is about after a turn: it is left only for what is better by the margin."""
    if held is None or turn.category == held.category or round(turn.score - turn.active_topic_score, 4) >= margin:
        return ActiveTopic(turn.category, turn.score, turn.method, turn.overrides)
    return held


def score_of(one: Found, held: ActiveTopic | None) -> float:
    """What a classification says of the category that holds; 0 where it says nothing of it."""
    return one.classification.scores.get(held.category, 0.0) if held is not None else 0.0


def as_turn(last: Found, held: ActiveTopic | None) -> Turn:
    """The last turn, seen as the earlier ones are."""
    said = last.classification
    return Turn(0, said.category or "", said.score, last.method, score_of(last, held), said.overrides)


class Turns:
    """What was found in earlier turns of conversations, which come again with every request.

    What a tool said is known to those who asked it alone: it may have said otherwise to somebody else.
    """

    def __init__(self, *, apart: bool = False) -> None:
        """`apart`: what the other methods said, too."""
        self._apart = apart
        self._found: LRUCache[bytes, Found | None] = LRUCache(REMEMBERED)
        self._new: list[tuple[str, bytes | None, Sequence[Step]]] = []  # not yet among them

    def get(self, text: str, asker: bytes | None) -> tuple[Found | None] | None:
        """What was found in this text, in a tuple; None when it is not known.

        Args:
            asker: as `asker_of` says; None where all are told the same.
        """
        self._take_in()
        for key in (_key(text),) if asker is None else (_key(text, asker), _key(text)):
            if key in self._found:
                return (self._found[key],)
        return None

    def put(self, text: str, asker: bytes | None, steps: Sequence[Step]) -> None:
        """Keeps what the methods said, unless one of them failed."""
        self._new.append((text, asker, steps))
        if len(self._new) == WAITING or len(text) > SHORT:
            self._take_in()

    def _take_in(self) -> None:
        """Most requests begin a conversation, and need nothing that is kept: it is worked in together, when it is."""
        for text, asker, steps in self._new:
            if not any(step.failure for step in steps):
                own = self._apart or any(step.method == "mcp" for step in steps)
                self._found[_key(text, asker if own else None)] = found(steps)
        self._new.clear()


def asker_of(query: Query) -> bytes:
    """Tells apart those to whom a tool may say different things of the same words."""
    client = query.client
    asker = (client.tenant, client.user, client.api_key_fingerprint, sorted(client.headers.items()), query.model)
    return repr(asker).encode("utf-8", "surrogatepass")


class Remembered(Struct, frozen=True):
    """A conversation whose earlier turns do not come with the request."""

    held: ActiveTopic | None
    key: str | None  # of its A/B draws, where they went by the conversation
    tenant: str | None = None  # nobody else goes on with it


class Conversations:
    """By the id of the last response: this process's alone, and the latest of them."""

    def __init__(self) -> None:
        self._known: LRUCache[str, Remembered] = LRUCache(REMEMBERED)

    def get(self, query: Query) -> Remembered | None:
        """What is known of the conversation that the query goes on with."""
        remembered = self._known.get(query.previous_response_id) if query.previous_response_id is not None else None
        return remembered if remembered is not None and remembered.tenant == query.client.tenant else None

    def put(self, response: str, remembered: Remembered) -> None:
        self._known[response] = remembered


def _key(text: str, asker: bytes | None = None) -> bytes:
    key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
    if asker is not None:
        key.update(b"\0" + hashlib.sha256(asker).digest())
    return key.digest()
