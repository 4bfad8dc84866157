"""What a conversation is about after its last turn, by what the methods say of it and of the turns before."""

import asyncio
from collections.abc import Callable, Sequence

from msgspec import Struct

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.config.schema import Affinity as Settings
from vllm_lora_router.routing.affinity_state import Found, Turns, as_turn, asker_of, follow, found, told
from vllm_lora_router.types import ActiveTopic, Affinity, Query, Step

# Of a conversation of thousands of turns, the first and the latest: each costs a microsecond or two every time.
LOOKED_AT = 64


class About(Struct, frozen=True):
    """What was found."""

    steps: tuple[Step, ...]  # of the last turn
    last: Found | None  # what a method was sure of in it
    held: ActiveTopic | None  # what the conversation is about from here on; None when nothing was ever sure
    affinity: Affinity | None  # None when nothing was known before the last turn


class Conversation:
    """Asks the methods about a request's turns: the last one, and those before that they were not asked about yet."""

    def __init__(
        self, settings: Settings, cascade: Cascade, clean: Callable[[str], str], *, apart: bool = False
    ) -> None:
        """
        Args:
            clean: takes what is not the user's question out of a turn.
            apart: nobody gains from what another has asked.
        """
        self._settings = settings
        self._cascade = cascade
        self._earlier = cascade.without("mcp")  # a tool is asked about what is said now
        self._turns = Turns(apart=apart)
        self._tells_apart = apart or len(self._earlier.classifiers) < len(cascade.classifiers)
        self._clean = clean

    async def ask(self, query: Query, before: ActiveTopic | None) -> About:
        """
        Args:
            before: what the conversation is known to have been about before the query's first turn.
        """
        if not self._settings.enabled:
            return _alone(await self._cascade.ask(self._of(query.text, query)))
        turns = _earlier(query)
        asker = asker_of(query) if self._tells_apart else None
        if not turns and before is None:  # most requests begin a conversation, and need nothing of what follows
            steps = await self._cascade.ask(self._of(query.text, query))
            self._keep(query, asker, steps)
            return _alone(steps)
        known = {text: self._turns.get(text, asker) for _, text in turns}
        unknown = self._to_ask([text for text, answer in known.items() if answer is None])
        # The last one first: it is what the request is about, and the others are nearly always known.
        asked = [self._cascade.ask(self._of(query.text, query))]
        asked += [self._earlier.ask(self._of(text, query)) for text in unknown]
        steps, *others = [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked)
        for text, answer in zip(unknown, others, strict=True):
            known[text] = (found(answer),)
            self._turns.put(text, asker, answer)
        self._keep(query, asker, steps)
        sure = [(back, answer[0]) for back, text in turns if (answer := known[text]) is not None]
        return self._about(steps, [(back, one) for back, one in sure if one is not None], before)

    def _keep(self, query: Query, asker: bytes | None, steps: tuple[Step, ...]) -> None:
        if query.has_text:
            self._turns.put(query.text, asker, steps)

    def _about(self, steps: tuple[Step, ...], earlier: list[tuple[int, Found]], before: ActiveTopic | None) -> About:
        margin = self._settings.margin
        # What is kept of a long conversation is its end, and what it was about when that began.
        left_out = max(len(earlier) - self._settings.turns, 0)
        before, _ = told(earlier[:left_out], before, margin)
        held, turns = told(earlier[left_out:], before, margin)
        if held is None:
            return _alone(steps)
        last = found(steps)
        after = held if last is None else follow(held, as_turn(last, held), margin)
        against = None if last is None else last.classification.category
        stays = after.category == held.category and against != held.category
        return About(steps, last, after, Affinity(held.category, stays, against, margin, tuple(turns), before))

    def _to_ask(self, texts: Sequence[str]) -> list[str]:
        """Of turns that nothing is known of, what it began with, however long ago, and what it came to."""
        most = self._settings.turns - 1
        return [texts[0], *texts[len(texts) - most + 1 :]] if len(texts) > most else list(texts)

    def _of(self, text: str, query: Query) -> Query:
        text = self._clean(text)
        if query.turns == (text,):
            return query
        return Query(text, (text,), query.api, None, query.client, query.model, query.may_call_tools)


def _earlier(query: Query) -> list[tuple[int, str]]:
    """Turns before the last, oldest first, each with how many turns it stands before the last."""
    last = len(query.turns) - 1
    looked_at = range(last) if last <= LOOKED_AT else (0, *range(last - LOOKED_AT + 1, last))
    return [(last - number, query.turns[number]) for number in looked_at if query.turns[number].strip()]


def _alone(steps: tuple[Step, ...]) -> About:
    last = found(steps)
    if last is None:
        return About(steps, None, None, None)
    turn = as_turn(last, None)
    return About(steps, last, ActiveTopic(turn.category, turn.score, turn.method, turn.overrides), None)
