"""The router: one configuration with its models loaded, built once and never changed."""

import asyncio
import re
from collections.abc import Callable, Sequence
from functools import cache

from msgspec.structs import replace

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.deadline import deadline_ms
from vllm_lora_router.classifiers.factory import Classifiers, build
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.protocols.ids import new_id
from vllm_lora_router.routing.ab_assignment import Sticky, share_of, sticky
from vllm_lora_router.routing.affinity import Conversation
from vllm_lora_router.routing.affinity_state import Conversations, Remembered
from vllm_lora_router.routing.candidates import Candidates
from vllm_lora_router.types import ANONYMOUS, Candidate, Client, Plan, Query, Reason, Step

TOGETHER = 32  # prompts of one request that are classified at once


class Router:
    """Says for a request which adapter or base should serve it, and why."""

    def __init__(
        self, loaded: Loaded, base: ServedBase, classifiers: Classifiers, conversations: Conversations | None = None
    ) -> None:
        """`conversations` are those of the router before: they outlive it."""
        config = loaded.config
        self.loaded = loaded
        self.base = base
        self.classifiers = classifiers
        self.version = loaded.version
        self.auto_names = config.auto_names
        self.rejects_failures = config.router.on_error == "reject"
        self.logs_decisions = config.router.log == "decisions"
        self.observes = config.router.mode == "observe"
        self.max_wait_s = config.router.adapters.max_wait_ms / 1000
        self.tenant_header = _header(config.router.tenant)
        self.isolates = config.router.tenant_cache == "isolated"
        self.places = tuple(config.router.ab.key)
        tool = config.classifier.mcp_category_model
        self.asks_tool = classifiers.tool is not None
        # Each with the name that ASGI knows it by.
        self.forwarded = tuple((name, name.encode()) for name in tool.forward_headers) if self.asks_tool else ()
        self.salt = config.router.ab.salt
        self.conversations = conversations or Conversations()
        self._off = config.router.mode == "off"
        self._share = config.router.share
        self._routes_base = config.router.route_base_model
        self._cascade = classifiers.cascade
        self._longest_s = (self._cascade.deadline_ms / 1000) + (tool.timeout_seconds if self.asks_tool else 0)
        self._candidates = Candidates(config, base)
        self._fallback_category = config.classifier.category_model.fallback_category
        self._drop = [re.compile(pattern) for pattern in config.router.text.drop]
        self._conversation = Conversation(config.router.affinity, self._cascade, self._clean, apart=self.isolates)

    @classmethod
    def build(cls, loaded: Loaded, base: ServedBase, before: "Router | None" = None) -> "Router":
        """Loads the models that the configuration needs; takes seconds, so never on the event loop.

        Args:
            before: the router in force, with which models that did not change are shared.

        Raises:
            ClassifierError: a model is missing, does not fit its settings, or has no room beside those in force.
        """
        conversations = before.conversations if before is not None else None
        if loaded.config.router.mode == "off":
            nothing = Classifiers(Cascade((), deadline_ms(loaded.config, {})), ())
            return cls(loaded, base, nothing, conversations)
        classifiers = build(loaded, before.classifiers if before is not None else None, base.served_name)
        return cls(loaded, base, classifiers, conversations)

    def takes(self, model: str | None, served_names: Sequence[str]) -> bool:
        """Whether a request for `model` (None: it names none) is ours to route."""
        return model in self.auto_names or (self._routes_base and (model is None or model in served_names))

    async def plan(
        self, queries: Sequence[Query], client: Client = ANONYMOUS, *, model: str | None = None, calls: bool = True
    ) -> Plan:
        """The plan for a request; with several prompts, one that suits them all within the time of one.

        Args:
            model: what the client names.
            calls: whether a tool may be called for it.
        """
        if self._off:
            return self.fallback("off")

        def whole(query: Query) -> Query:
            return Query(query.text, query.turns, query.api, query.previous_response_id, client, model, calls)

        sticky = cache(lambda: self._sticky(whole(queries[0])))
        share = share_of(sticky(), self._share) if self._share < 1 else None
        if share is not None and share.position >= share.share:
            return replace(self.fallback("not_in_share"), share=share)
        plan = await self._plan_all(queries, whole, sticky)
        return plan if share is None else replace(plan, share=share)

    def fallback(self, reason: Reason) -> Plan:
        """The plan for a request that is not classified."""
        return Plan((), reason, None, None, None, self._candidates.default, self.version)

    @property
    def default(self) -> tuple[Candidate, ...]:
        """What serves where nothing is applied."""
        return self._candidates.default

    @property
    def base_alone(self) -> Candidate:
        """What serves when not even `default_model` can: the base itself always does."""
        return Candidate(self.base.served_name, None, source="the base: default_model cannot be served")

    def remember(self, response: str, queries: Sequence[Query], client: Client, plan: Plan) -> None:
        """Keeps what a conversation is about for the request that will name this response and not bring its turns."""
        key = self._sticky(replace(queries[0], client=client))
        remembered = Remembered(plan.active_topic, key.key if key.by == "conversation" else None, client.tenant)
        self.conversations.put(response, remembered)

    async def _plan_all(
        self, queries: Sequence[Query], whole: Callable[[Query], Query], sticky: Callable[[], Sticky]
    ) -> Plan:
        if len(queries) == 1:
            return await self._plan(whole(queries[0]), sticky)
        plans: list[Plan] = []
        distinct = list({(query.text, query.turns): query for query in queries}.values())
        try:
            async with asyncio.timeout(self._longest_s):
                for start in range(0, len(distinct), TOGETHER):
                    together = (self._plan(whole(query), sticky) for query in distinct[start : start + TOGETHER])
                    plans += await asyncio.gather(*together)
                    first = plans[0]
                    if any(
                        plan.category != first.category or plan.candidates != first.candidates for plan in plans[start:]
                    ):
                        steps = tuple(step for plan in plans for step in plan.steps)
                        return Plan(steps, "mixed", None, None, None, self._candidates.default, self.version)
                    await asyncio.sleep(0)  # others have their turn, however many prompts there are
        except TimeoutError:
            return self.fallback("timeout")
        return plans[0]

    async def _plan(self, query: Query, sticky: Callable[[], Sticky]) -> Plan:
        remembered = self.conversations.get(query)
        about = await self._conversation.ask(query, remembered.held if remembered is not None else None)
        if (held := about.held) is None:
            category, reason = self._fallback_category, _why_not(query, about.steps)
            candidates, draw = self._candidates.of(category, sticky)
            return Plan(about.steps, reason, category, None, None, candidates, self.version, assignment=draw)
        candidates, draw = self._candidates.of(held.category, sticky, held.overrides)
        stays = about.affinity is not None and about.affinity.kept
        return Plan(
            about.steps,
            "affinity" if stays else "routed",
            held.category,
            held.score,
            held.method,
            candidates,
            self.version,
            affinity=about.affinity,
            assignment=draw,
            active_topic=held,
        )

    def _sticky(self, query: Query) -> Sticky:
        remembered = self.conversations.get(query)
        beginning = query.turns[0] if query.turns else query.text
        known = remembered.key if remembered is not None else None
        return sticky(query.client, beginning, self.places, self.salt, new_id(), known)

    def _clean(self, text: str) -> str:
        """What is not boilerplate."""
        for pattern in self._drop:
            text = pattern.sub(" ", text)
        return text


def _header(place: str | None) -> bytes | None:
    """The name of a request header, as ASGI has it, that `header:x-tenant` means."""
    return None if place is None else place.removeprefix("header:").lower().encode()


def _why_not(query: Query, steps: Sequence[Step]) -> Reason:
    for step in steps:
        if step.failure is not None:
            return step.failure
    return "below_threshold" if query.has_text else "no_text"
