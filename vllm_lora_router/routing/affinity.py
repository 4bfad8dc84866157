"""Affinity: determine the topic of a conversation from its last turn and the turns before it."""

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.config.schema import AffinitySettings
from vllm_lora_router.routing.affinity_state import (
    AcceptedClassification,
    TurnCache,
    accepted_classification,
    client_key,
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
    """Classifies the last turn of a conversation, and those earlier turns that are not cached."""

    def __init__(
        self, settings: AffinitySettings, cascade: Cascade, text_filter: TextFilter, *, by_client: bool = False
    ) -> None:
        """Create a classifier.

        Args:
            text_filter: Removes text that is not part of the user's question.
            by_client: Never use a result of one client for another client.
        """
        self._settings = settings
        self._cascade = cascade
        self._earlier_cascade = cascade.without("mcp")  # a tool classifies only the last turn
        self._turns = TurnCache(by_client=by_client)
        self._needs_client = by_client or len(self._earlier_cascade.classifiers) < len(cascade.classifiers)
        self._text_filter = text_filter

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
            self._store(query, client, steps)
            return _without_affinity(steps)
        cached = {text: self._turns.get(text, client) for _, text in turns}
        unknown = self._select_unknown([text for text, result in cached.items() if result is None])
        # The last turn first: it decides, and the results of earlier turns are nearly always cached.
        calls = [self._classify(self._cascade, query.text, query)]
        calls += [self._classify(self._earlier_cascade, text, query) for text in unknown]
        steps, *others = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        for text, earlier_steps in zip(unknown, others, strict=True):
            cached[text] = (accepted_classification(earlier_steps),)
            self._turns.put(text, client, earlier_steps)
        self._store(query, client, steps)
        results = [(turns_ago, result[0]) for turns_ago, text in turns if (result := cached[text]) is not None]
        accepted = [(turns_ago, result) for turns_ago, result in results if result is not None]
        return self._result(steps, accepted, before)

    def _store(self, query: Query, client: bytes | None, steps: tuple[Step, ...]) -> None:
        if query.has_text:
            self._turns.put(query.text, client, steps)

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

    def _select_unknown(self, texts: Sequence[str]) -> list[str]:
        """Return the turns to classify: the first one, whatever its age, and the latest ones."""
        limit = self._settings.turns - 1
        return [texts[0], *texts[len(texts) - limit + 1 :]] if len(texts) > limit else list(texts)

    async def _classify(self, cascade: Cascade, text: str, query: Query) -> tuple[Step, ...]:
        """Classify one turn. Filtering its text counts towards the deadline."""
        limit_s = cascade.deadline_ms / 1000
        deadline = asyncio.get_running_loop().time() + limit_s
        text = await self._text_filter.apply(text, limit_s)
        if query.turns != (text,):
            query = Query(text, (text,), query.api, None, query.client, query.model, query.may_call_tools)
        return await cascade.classify(query, deadline)


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
