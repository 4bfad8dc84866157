"""State of conversations: the active topic, and the caches of earlier turns and of conversations.

A conversation keeps its topic, so that follow-ups such as "commit it" and "why?" need no category of their own.
"""

import hashlib
from collections.abc import Iterable, Sequence

from cachetools import LRUCache
from msgspec import Struct

from vllm_lora_router.types import ActiveTopic, Classification, Method, Query, Step, Turn

# Maximum number of entries of each cache in one process.
MAX_ENTRIES = 10_000
# Results that wait to be written into the cache: at most this many, for texts of at most this many characters.
MAX_PENDING, MAX_PENDING_CHARACTERS = 64, 4096


class AcceptedClassification(Struct, frozen=True):
    """An accepted classification and its method."""

    method: Method
    classification: Classification


def accepted_classification(steps: Sequence[Step]) -> AcceptedClassification | None:
    """Return the accepted classification of one turn, or None if no method accepted one."""
    last = steps[-1] if steps else None
    if last is None or last.classification is None or not last.classification.accepted:
        return None
    return AcceptedClassification(last.method, last.classification)


def replay_turns(
    earlier: Iterable[tuple[int, AcceptedClassification]], before: ActiveTopic | None, margin: float
) -> tuple[ActiveTopic | None, list[Turn]]:
    """Return the topic before the last turn, and the turns that led to it.

    Args:
        earlier: The earlier turns, oldest first, each with its number of turns before the last one.
        before: The topic before the oldest of these turns.
        margin: See `next_topic`.
    """
    topic, turns = before, list[Turn]()
    for turns_ago, accepted in earlier:
        turn = _turn(turns_ago, accepted, topic)
        turns.append(turn)
        topic = next_topic(topic, turn, margin)
    return topic, turns


def next_topic(topic: ActiveTopic | None, turn: Turn, margin: float) -> ActiveTopic:
    """Return the topic after a turn. It changes only to a category whose score is better by at least the margin."""
    if topic is None or turn.category == topic.category or round(turn.score - turn.active_topic_score, 4) >= margin:
        return ActiveTopic(turn.category, turn.score, turn.method, turn.overrides)
    return topic


def last_turn(accepted: AcceptedClassification, topic: ActiveTopic | None) -> Turn:
    """Return the last turn in the form of the earlier ones."""
    return _turn(0, accepted, topic)


class TurnCache:
    """Classifications of earlier turns, which clients send again with every request.

    The result of an MCP tool is used only for the client that it was made for, because a tool may answer differently
    for another client.
    """

    def __init__(self, *, by_client: bool = False) -> None:
        """Create a cache.

        Args:
            by_client: Keep the results of all methods apart by client, not only those of MCP tools.
        """
        self._by_client = by_client
        self._entries: LRUCache[bytes, AcceptedClassification | None] = LRUCache(MAX_ENTRIES)
        self._pending: list[tuple[str, bytes | None, Sequence[Step]]] = []  # not yet written into the cache

    def get(self, text: str, client: bytes | None) -> tuple[AcceptedClassification | None] | None:
        """Return the result for a text in a tuple, or None if it is not cached.

        Args:
            client: The `client_key` of the query; None if results do not depend on the client.
        """
        self._write_pending()
        for key in (_key(text),) if client is None else (_key(text, client), _key(text)):
            if key in self._entries:
                return (self._entries[key],)
        return None

    def put(self, text: str, client: bytes | None, steps: Sequence[Step]) -> None:
        """Store the result of a turn, unless a method failed."""
        self._pending.append((text, client, steps))
        if len(self._pending) == MAX_PENDING or len(text) > MAX_PENDING_CHARACTERS:
            self._write_pending()

    def _write_pending(self) -> None:
        """Write pending results. Writes are deferred, because most requests start a conversation and read no cache."""
        for text, client, steps in self._pending:
            if not any(step.failure for step in steps):
                depends_on_client = self._by_client or any(step.method == "mcp" for step in steps)
                key = _key(text, client if depends_on_client else None)
                self._entries[key] = accepted_classification(steps)
        self._pending.clear()


def client_key(query: Query) -> bytes:
    """Return a key that differs for clients for which a tool may answer differently."""
    client = query.client
    values = (client.tenant, client.user, client.api_key_fingerprint, sorted(client.headers.items()), query.model)
    return repr(values).encode("utf-8", "surrogatepass")


class StoredConversation(Struct, frozen=True):
    """A conversation whose next request will not contain its earlier turns."""

    active_topic: ActiveTopic | None
    assignment_key: str | None  # key of its A/B assignments, if they depend on the conversation
    tenant: str | None = None  # only requests of this tenant may continue it


class ConversationStore:
    """The most recent conversations of this process, by the id of their last response."""

    def __init__(self) -> None:
        self._entries: LRUCache[str, StoredConversation] = LRUCache(MAX_ENTRIES)

    def get(self, query: Query) -> StoredConversation | None:
        """Return the conversation that the query continues, or None if it is unknown or belongs to another tenant."""
        stored = self._entries.get(query.previous_response_id) if query.previous_response_id is not None else None
        return stored if stored is not None and stored.tenant == query.client.tenant else None

    def put(self, response: str, conversation: StoredConversation) -> None:
        self._entries[response] = conversation


def _turn(turns_ago: int, accepted: AcceptedClassification, topic: ActiveTopic | None) -> Turn:
    classification = accepted.classification
    assert classification.category is not None, "an accepted classification names a category"
    # 0 if the classification does not score the topic's category.
    topic_score = classification.scores.get(topic.category, 0.0) if topic is not None else 0.0
    return Turn(
        turns_ago,
        classification.category,
        classification.score,
        accepted.method,
        topic_score,
        classification.overrides,
    )


def _key(text: str, client: bytes | None = None) -> bytes:
    key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
    if client is not None:
        key.update(b"\0" + hashlib.sha256(client).digest())
    return key.digest()
