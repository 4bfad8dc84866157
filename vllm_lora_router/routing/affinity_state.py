"""State of conversations: the active topic, and the caches of earlier turns and of conversations.

A conversation keeps its topic, so that follow-ups such as "commit it" and "why?" need no category of their own.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence

from cachetools import LRUCache
from msgspec import Struct

from vllm_lora_router.types import ActiveTopic, Classification, Method, Query, Step, Turn

# Maximum number of entries of each cache in one process.
MAX_ENTRIES = 10_000
# Results that wait to be written into the cache: at most this many, for texts of at most this many characters.
MAX_PENDING, MAX_PENDING_CHARACTERS = 64, 4096
# Texts are hashed in pieces of this size, and longer ones on another thread.
CHUNK_CHARACTERS = 65_536


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


def is_decisive(accepted: AcceptedClassification, margin: float) -> bool:
    """Return whether the topic after a turn is its category, whatever the topic before it was. See `next_topic`."""
    classification = accepted.classification
    others = (score for category, score in classification.scores.items() if category != classification.category)
    return round(classification.score - max((0.0, *others)), 4) >= margin


def last_turn(accepted: AcceptedClassification, topic: ActiveTopic | None) -> Turn:
    """Return the last turn in the form of the earlier ones."""
    return _turn(0, accepted, topic)


class TurnCache:
    """Classifications of earlier turns, which clients send again with every request.

    All configurations of a process share one cache. An entry belongs to a scope, which is a digest of everything that
    the classification depends on. A reload that changes none of it therefore keeps the entries.
    """

    def __init__(self) -> None:
        self._entries: LRUCache[tuple[bytes, bytes, bytes | None], AcceptedClassification | None] = LRUCache(
            MAX_ENTRIES
        )
        # Not yet written into the cache: the scope, the text, the client and the result of each turn.
        self._pending: list[tuple[bytes, str, bytes | None, AcceptedClassification | None]] = []

    def get(
        self, scope: bytes, text_digest: bytes, client: bytes | None
    ) -> tuple[AcceptedClassification | None] | None:
        """Return the result for a text in a tuple, or None if it is not cached.

        Args:
            client: The `client_key` of the query; None if results do not depend on the client.
        """
        self._write_pending()
        for owner in (None,) if client is None else (client, None):
            if (key := (scope, text_digest, owner)) in self._entries:
                return (self._entries[key],)
        return None

    def put(
        self, scope: bytes, text_digest: bytes, client: bytes | None, result: AcceptedClassification | None
    ) -> None:
        """Store the result of a turn.

        Args:
            client: The `client_key` of the query; None for a result that holds for all clients.
        """
        self._entries[scope, text_digest, client] = result

    def put_later(self, scope: bytes, text: str, client: bytes | None, result: AcceptedClassification | None) -> None:
        """Store the result of a short turn before the cache is read, but not at once.

        Most requests start a conversation and read no cache, so their texts are hashed together.
        """
        self._pending.append((scope, text, client, result))
        if len(self._pending) == MAX_PENDING:
            self._write_pending()

    def _write_pending(self) -> None:
        for scope, text, client, result in self._pending:
            self.put(scope, digest(text), client, result)
        self._pending.clear()


async def digests(texts: Sequence[str]) -> list[bytes]:
    """Return the digests of texts. Long texts are hashed on another thread, because a megabyte takes 1.4 ms."""
    if sum(map(len, texts)) > CHUNK_CHARACTERS:
        return await asyncio.to_thread(lambda: [digest(text) for text in texts])
    return [digest(text) for text in texts]


def digest(text: str) -> bytes:
    """Return a digest of a text. It is computed in pieces, between which another thread can run."""
    hashed = hashlib.blake2b(digest_size=16)
    for start in range(0, len(text), CHUNK_CHARACTERS):
        hashed.update(text[start : start + CHUNK_CHARACTERS].encode("utf-8", "surrogatepass"))
    return hashed.digest()


def client_key(query: Query) -> bytes:
    """Return a key that differs for clients for which a tool may answer differently."""
    client = query.client
    values = (client.tenant, client.user, client.api_key_fingerprint, sorted(client.headers.items()), query.model)
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).digest()


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
