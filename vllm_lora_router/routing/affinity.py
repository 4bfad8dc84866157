"""Affinity: determine the topic of a conversation from its last turn and the turns before it."""

import asyncio

from msgspec import Struct

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.config.schema import AffinitySettings
from vllm_lora_router.routing.affinity_state import (
    MAX_PENDING_CHARACTERS,
    AcceptedClassification,
    TurnCache,
    accepted_classification,
    client_key,
    digest,
    digests,
    is_decisive,
    last_turn,
    next_topic,
    replay_turns,
)
from vllm_lora_router.routing.text_filter import TextFilter
from vllm_lora_router.types import ActiveTopic, Affinity, Query, Step

# Of a longer conversation, the first turn and the latest turns are used: each turn costs one or two microseconds.
MAX_TURNS = 64


class ConversationResult(Struct, frozen=True):
    """The classification of a conversation."""

    steps: tuple[Step, ...]  # of the last turn
    active_topic: ActiveTopic | None  # the topic after the last turn; None: no turn was ever accepted
    affinity: Affinity | None  # None: the conversation had no topic before the last turn


class ConversationClassifier:
    """Classifies the last turn of a conversation, and those earlier turns that are not cached.

    The topic follows from the turns alone, not from what the cache contains, so that replicas and restarted processes
    choose the same adapter. The exception is an MCP tool, which is asked only about the last turn: another replica does
    not know its answers.
    """

    def __init__(
        self,
        settings: AffinitySettings,
        cascade: Cascade,
        text_filter: TextFilter,
        turns: TurnCache,
        *,
        by_client: bool = False,
    ) -> None:
        """Create a classifier.

        Args:
            text_filter: Removes text that is not part of the user's question.
            turns: The classifications of earlier turns, which configurations share.
            by_client: Never use a result of one client for another client.
        """
        self._settings = settings
        self._cascade = cascade
        self._earlier_cascade = cascade.without("mcp")  # a tool classifies only the last turn
        self._turns = turns
        self._by_client = by_client
        self._needs_client = by_client or len(self._earlier_cascade.classifiers) < len(cascade.classifiers)
        self._text_filter = text_filter
        fingerprints = [(classifier.method, classifier.fingerprint) for classifier in cascade.classifiers]
        self._scope = digest(repr((fingerprints, text_filter.patterns, by_client)))

    async def classify(self, query: Query, before: ActiveTopic | None) -> ConversationResult:
        """Classify a conversation.

        Args:
            before: The topic of the conversation before the query's first turn, if it is known.

        Raises:
            TimeoutError: The deadline of the cascade passed while the text was filtered.
        """
        if not self._settings.enabled:
            return _without_affinity(await self._classify(self._cascade, query.text, query))
        turns = _earlier_turns(query)
        client = client_key(query) if self._needs_client else None
        if not turns and before is None:  # fast path: most requests start a conversation
            steps = await self._classify(self._cascade, query.text, query)
            await self._store_last(query, client, steps)
            return _without_affinity(steps)
        earlier = _EarlierTurns(turns, await digests([text for _, text in turns]))
        for text_digest in earlier.texts:
            earlier.results[text_digest] = self._turns.get(self._scope, text_digest, client)
        last = self._classify(self._cascade, query.text, query)
        if self._next_unknown(earlier):
            # The last turn first: it decides.
            steps, _ = await asyncio.gather(last, self._classify_earlier(earlier, query, client))
        else:
            steps = await last
        await self._store_last(query, client, steps)
        return self._result(steps, earlier.accepted(), before)

    async def _classify_earlier(self, earlier: "_EarlierTurns", query: Query, client: bytes | None) -> None:
        """Classify unknown turns from the latest one backwards, until they determine the topic or the deadline passes.

        A conversation that is new to this process then gets the topic that it has in processes that know all its turns.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + self._earlier_cascade.deadline_ms / 1000
        while (unknown := self._next_unknown(earlier)) and now() < deadline:
            texts = (earlier.texts[text_digest] for text_digest in unknown)
            calls = (self._classify(self._earlier_cascade, text, query, deadline) for text in texts)
            for text_digest, steps in zip(unknown, await asyncio.gather(*calls), strict=True):
                result = accepted_classification(steps)
                earlier.results[text_digest] = (result,)
                if not _has_failed(steps):
                    self._turns.put(self._scope, text_digest, client if self._by_client else None, result)

    def _next_unknown(self, earlier: "_EarlierTurns") -> list[bytes]:
        """Return unknown turns after the last decisive one, latest first; at most `affinity.turns` less one."""
        unknown: dict[bytes, None] = {}
        for _, text_digest in reversed(earlier.turns):
            result = earlier.results[text_digest]
            if result is None:
                unknown[text_digest] = None
                if len(unknown) == self._settings.turns - 1:
                    break
            elif result[0] is not None and is_decisive(result[0], self._settings.margin):
                break
        return list(unknown)

    async def _store_last(self, query: Query, client: bytes | None, steps: tuple[Step, ...]) -> None:
        """Store the result of the last turn, which is an earlier turn of the next request, unless a method failed."""
        if not query.has_text or _has_failed(steps):
            return
        depends_on_client = self._by_client or any(step.method == "mcp" for step in steps)
        owner = client if depends_on_client else None
        result = accepted_classification(steps)
        if len(query.text) > MAX_PENDING_CHARACTERS:
            (text_digest,) = await digests([query.text])
            self._turns.put(self._scope, text_digest, owner, result)
        else:
            self._turns.put_later(self._scope, query.text, owner, result)

    def _result(
        self, steps: tuple[Step, ...], earlier: list[tuple[int, AcceptedClassification]], before: ActiveTopic | None
    ) -> ConversationResult:
        margin = self._settings.margin
        # The record of a long conversation contains its latest turns and the topic before them.
        omitted = max(len(earlier) - self._settings.turns, 0)
        before, _ = replay_turns(earlier[:omitted], before, margin)
        topic, turns = replay_turns(earlier[omitted:], before, margin)
        if topic is None:
            return _without_affinity(steps)
        last = accepted_classification(steps)
        new_topic = topic if last is None else next_topic(topic, last_turn(last, topic), margin)
        alternative = None if last is None else last.classification.category
        kept = new_topic.category == topic.category and alternative != topic.category
        affinity = Affinity(topic.category, kept, alternative, margin, tuple(turns), before)
        return ConversationResult(steps, new_topic, affinity)

    async def _classify(
        self, cascade: Cascade, text: str, query: Query, deadline: float | None = None
    ) -> tuple[Step, ...]:
        """Classify one turn. Filtering its text counts towards the deadline."""
        now = asyncio.get_running_loop().time()
        if deadline is None:
            deadline = now + cascade.deadline_ms / 1000
        text = await self._text_filter.apply(text, max(deadline - now, 0.0))
        if query.turns != (text,):
            query = Query(text, (text,), query.api, None, query.client, query.model, query.may_call_tools)
        return await cascade.classify(query, deadline)


class _EarlierTurns:
    """The earlier turns of one request, oldest first, and what is known about them.

    Texts are identified by their digests, because a dictionary would hash long texts on the event loop.
    """

    def __init__(self, turns: list[tuple[int, str]], text_digests: list[bytes]) -> None:
        self.texts = {text_digest: text for (_, text), text_digest in zip(turns, text_digests, strict=True)}
        # The number of turns before the last one, and the digest of the text.
        self.turns = [(turns_ago, text_digest) for (turns_ago, _), text_digest in zip(turns, text_digests, strict=True)]
        # Of each text: its accepted classification or None, in a tuple; None: it was not classified.
        self.results: dict[bytes, tuple[AcceptedClassification | None] | None] = dict.fromkeys(self.texts)

    def accepted(self) -> list[tuple[int, AcceptedClassification]]:
        """Return the accepted turns, oldest first, each with its number of turns before the last one."""
        results = [(turns_ago, result[0]) for turns_ago, key in self.turns if (result := self.results[key]) is not None]
        return [(turns_ago, accepted) for turns_ago, accepted in results if accepted is not None]


def _has_failed(steps: tuple[Step, ...]) -> bool:
    return any(step.failure for step in steps)


def _earlier_turns(query: Query) -> list[tuple[int, str]]:
    """Return the turns before the last one, oldest first, each with its number of turns before the last one."""
    last = len(query.turns) - 1
    indexes = range(last) if last <= MAX_TURNS else (0, *range(last - MAX_TURNS + 1, last))
    return [(last - index, query.turns[index]) for index in indexes if query.turns[index].strip()]


def _without_affinity(steps: tuple[Step, ...]) -> ConversationResult:
    last = accepted_classification(steps)
    if last is None:
        return ConversationResult(steps, None, None)
    turn = last_turn(last, None)
    return ConversationResult(steps, ActiveTopic(turn.category, turn.score, turn.method, turn.overrides), None)
