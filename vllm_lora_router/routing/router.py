"""The router: plans requests for one configuration whose models are loaded. It never changes after construction."""

import asyncio
from collections.abc import Callable, Sequence
from functools import cache

from msgspec.structs import replace

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.deadline import deadline_ms
from vllm_lora_router.classifiers.factory import Classifiers, build
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.ids import new_id
from vllm_lora_router.routing.ab_assignment import AssignmentKey, assignment_key, traffic_share
from vllm_lora_router.routing.affinity import ConversationClassifier
from vllm_lora_router.routing.affinity_state import ConversationStore, StoredConversation, TurnCache
from vllm_lora_router.routing.candidates import Candidates
from vllm_lora_router.routing.text_filter import TextFilter
from vllm_lora_router.types import ANONYMOUS, Candidate, Client, Plan, Query, Reason, Step

MAX_CONCURRENT_PROMPTS = 32  # prompts of one request that are classified at once


class Router:
    """Plans which adapter or base model serves a request, and records why."""

    def __init__(
        self,
        loaded: LoadedConfig,
        base: ServedBase,
        classifiers: Classifiers,
        before: "Router | None" = None,
    ) -> None:
        """Create a router.

        Args:
            before: The previous router. Its conversations and classified turns are kept.
        """
        config = loaded.config
        self.loaded = loaded
        self.base = base
        self.classifiers = classifiers
        self.version = loaded.version
        self.auto_names = config.auto_names
        self.rejects_on_error = config.router.on_error == "reject"
        self.logs_decisions = config.router.log == "decisions"
        self.observe_only = config.router.mode == "observe"
        self.max_wait_s = config.router.adapters.max_wait_ms / 1000
        self.tenant_header = _header_name(config.router.tenant)
        self.isolates_tenants = config.router.tenant_cache == "isolated"
        self.guards_open_paths = config.router.guard_open_paths
        self.ab_key_sources = tuple(config.router.ab.key)
        tool = config.classifier.mcp_category_model
        self.uses_mcp = classifiers.mcp_tool is not None
        # Each header with its name in ASGI, which is bytes.
        self.forwarded_headers = tuple((name, name.encode()) for name in tool.forward_headers) if self.uses_mcp else ()
        self.ab_salt = config.router.ab.salt
        self.conversations = before.conversations if before is not None else ConversationStore()
        self.turns = before.turns if before is not None else TurnCache()
        self._off = config.router.mode == "off"
        self._share = config.router.share
        self._routes_base = config.router.route_base_model
        self._cascade = classifiers.cascade
        self._time_limit_s = (self._cascade.deadline_ms / 1000) + (tool.timeout_seconds if self.uses_mcp else 0)
        self._candidates = Candidates(config, base)
        self._fallback_category = config.classifier.category_model.fallback_category
        self._conversation_classifier = ConversationClassifier(
            config.router.affinity,
            self._cascade,
            TextFilter(config.router.text.drop),
            self.turns,
            by_client=self.isolates_tenants,
        )

    @classmethod
    def build(cls, loaded: LoadedConfig, base: ServedBase, before: "Router | None" = None) -> "Router":
        """Build a router and load the models that the configuration needs.

        This takes seconds, so it must not run on the event loop.

        Args:
            before: The router in effect. Models that did not change are shared with it.

        Raises:
            ClassifierError: A model is missing, does not match its settings, or does not fit into memory together
                with the models in effect.
        """
        if loaded.config.router.mode == "off":
            no_classifiers = Classifiers(Cascade((), deadline_ms(loaded.config, {})), ())
            return cls(loaded, base, no_classifiers, before)
        classifiers = build(loaded, before.classifiers if before is not None else None, base.served_name)
        return cls(loaded, base, classifiers, before)

    def routes(self, model: str | None, served_names: Sequence[str]) -> bool:
        """Return whether requests with this `model` are routed.

        Args:
            model: The model that the client requested; None if the request has no `model`.
            served_names: The served names of the base model.
        """
        return model in self.auto_names or (self._routes_base and (model is None or model in served_names))

    async def plan(
        self,
        queries: Sequence[Query],
        client: Client = ANONYMOUS,
        *,
        model: str | None = None,
        may_call_tools: bool = True,
    ) -> Plan:
        """Return the plan for a request.

        Several prompts get one plan that fits all of them, within the time limit of a single prompt.

        Args:
            model: The model that the client requested.
            may_call_tools: Whether an MCP tool may be called for the request.
        """
        if self._off:
            return self.fallback("off")

        def with_client(query: Query) -> Query:
            return Query(query.text, query.turns, query.api, query.previous_response_id, client, model, may_call_tools)

        key = cache(lambda: self._assignment_key(with_client(queries[0])))
        share = traffic_share(key(), self._share) if self._share < 1 else None
        if share is not None and share.position >= share.share:
            return replace(self.fallback("not_in_share"), share=share)
        plan = await self._plan_all(queries, with_client, key)
        return plan if share is None else replace(plan, share=share)

    def fallback(self, reason: Reason) -> Plan:
        """Return the plan for a request that is not classified."""
        return Plan((), reason, None, None, None, self._candidates.default, self.version)

    @property
    def default(self) -> tuple[Candidate, ...]:
        """Return the candidates of requests without a category."""
        return self._candidates.default

    @property
    def base_only(self) -> Candidate:
        """Return the base model as a candidate, for the case that `default_model` cannot be served."""
        return Candidate(self.base.served_name, None, source="the base model: default_model cannot be served")

    def remember(self, response: str, queries: Sequence[Query], client: Client, plan: Plan) -> None:
        """Store the topic of a conversation for the request that refers to this response and omits earlier turns."""
        key = self._assignment_key(replace(queries[0], client=client))
        conversation_key = key.key if key.source == "conversation" else None
        self.conversations.put(response, StoredConversation(plan.active_topic, conversation_key, client.tenant))

    async def _plan_all(
        self, queries: Sequence[Query], with_client: Callable[[Query], Query], key: Callable[[], AssignmentKey]
    ) -> Plan:
        if len(queries) == 1:
            return await self._plan(with_client(queries[0]), key)
        plans: list[Plan] = []
        distinct = list({(query.text, query.turns): query for query in queries}.values())
        try:
            async with asyncio.timeout(self._time_limit_s):
                for start in range(0, len(distinct), MAX_CONCURRENT_PROMPTS):
                    chunk = distinct[start : start + MAX_CONCURRENT_PROMPTS]
                    plans += await asyncio.gather(*(self._plan(with_client(query), key) for query in chunk))
                    first = plans[0]
                    if any(
                        plan.category != first.category or plan.candidates != first.candidates for plan in plans[start:]
                    ):
                        steps = tuple(step for plan in plans for step in plan.steps)
                        return Plan(steps, "mixed", None, None, None, self._candidates.default, self.version)
                    await asyncio.sleep(0)  # lets other requests run between the chunks
        except TimeoutError:
            return self.fallback("timeout")
        return plans[0]

    async def _plan(self, query: Query, key: Callable[[], AssignmentKey]) -> Plan:
        stored = self.conversations.get(query)
        before = stored.active_topic if stored is not None else None
        try:
            result = await self._conversation_classifier.classify(query, before)
        except TimeoutError:  # of router.text.drop: a classifier that takes too long is a step with a failure
            return self.fallback("timeout")
        if (topic := result.active_topic) is None:
            category, reason = self._fallback_category, _fallback_reason(query, result.steps)
            candidates, assignment = self._candidates.for_category(category, key)
            return Plan(result.steps, reason, category, None, None, candidates, self.version, assignment=assignment)
        candidates, assignment = self._candidates.for_category(topic.category, key, topic.overrides)
        kept = result.affinity is not None and result.affinity.kept
        return Plan(
            result.steps,
            "affinity" if kept else "routed",
            topic.category,
            topic.score,
            topic.method,
            candidates,
            self.version,
            affinity=result.affinity,
            assignment=assignment,
            active_topic=topic,
        )

    def _assignment_key(self, query: Query) -> AssignmentKey:
        stored = self.conversations.get(query)
        beginning = query.turns[0] if query.turns else query.text
        known = stored.assignment_key if stored is not None else None
        return assignment_key(query.client, beginning, self.ab_key_sources, self.ab_salt, new_id(), known)


def _header_name(source: str | None) -> bytes | None:
    """Return the name of a request header in ASGI's form, from a setting such as `header:x-tenant`."""
    return None if source is None else source.removeprefix("header:").lower().encode()


def _fallback_reason(query: Query, steps: Sequence[Step]) -> Reason:
    for step in steps:
        if step.failure is not None:
            return step.failure
    return "below_threshold" if query.has_text else "no_text"
