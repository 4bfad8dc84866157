"""The router: one configuration with its models loaded, built once and never changed."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace

from vllm_lora_router.classifiers.build import Classifiers, build
from vllm_lora_router.config.base import ServedBase
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.routing.candidates import Candidates
from vllm_lora_router.values import Candidate, Plan, Query, Reason, Step

TOGETHER = 32  # prompts of one request that are classified at once


class Router:
    """Says for a request which adapter or base should serve it, and why."""

    def __init__(self, loaded: Loaded, base: ServedBase, classifiers: Classifiers) -> None:
        config = loaded.config
        self.loaded = loaded
        self.base = base
        self.classifiers = classifiers
        self.version = loaded.version
        self.auto_names = config.auto_names
        self.rejects_failures = config.router.on_error == "reject"
        self.logs_decisions = config.router.log == "decisions"
        self.max_wait_s = config.router.adapters.max_wait_ms / 1000
        self.tenant_header = _header(config.router.tenant)
        self._routes_base = config.router.route_base_model
        self._cascade = classifiers.cascade
        self._candidates = Candidates(config, base)
        self._fallback_category = config.classifier.category_model.fallback_category
        self._drop = [re.compile(pattern) for pattern in config.router.text.drop]

    @classmethod
    def build(cls, loaded: Loaded, base: ServedBase, before: "Router | None" = None) -> "Router":
        """Loads the models that the configuration needs; takes seconds, so never on the event loop.

        Args:
            before: the router in force, with which models that did not change are shared.

        Raises:
            ClassifierError: a model is missing, does not fit its settings, or has no room beside those in force.
        """
        return cls(loaded, base, build(loaded, before.classifiers if before is not None else None))

    def takes(self, model: str | None, served_names: Sequence[str]) -> bool:
        """Whether a request for `model` (None: it names none) is ours to route."""
        return model in self.auto_names or (self._routes_base and (model is None or model in served_names))

    async def plan(self, queries: Sequence[Query]) -> Plan:
        """The plan for a request; with several prompts, one that suits them all within the time of one."""
        if len(queries) == 1:
            return await self._plan(queries[0])
        plans: list[Plan] = []
        distinct = list(dict.fromkeys(queries))
        try:
            async with asyncio.timeout(self._cascade.deadline_ms / 1000):
                for start in range(0, len(distinct), TOGETHER):
                    plans += await asyncio.gather(*map(self._plan, distinct[start : start + TOGETHER]))
                    if any(plan.category != plans[0].category for plan in plans[start:]):
                        steps = tuple(step for plan in plans for step in plan.steps)
                        return Plan(steps, "mixed", None, None, None, self._candidates.default, self.version)
                    await asyncio.sleep(0)  # others have their turn, however many prompts there are
        except TimeoutError:
            return self.fallback("timeout")
        return plans[0]

    def fallback(self, reason: Reason) -> Plan:
        """The plan for a request that could not be classified at all."""
        return Plan((), reason, None, None, None, self._candidates.default, self.version)

    @property
    def base_alone(self) -> Candidate:
        """What serves when not even `default_model` can: the base itself always does."""
        return Candidate(self.base.served_name, None, why="the base: default_model cannot be served")

    async def _plan(self, query: Query) -> Plan:
        for pattern in self._drop:
            query = replace(query, text=pattern.sub(" ", query.text))
        steps = await self._cascade.ask(query)
        last = steps[-1] if steps else None
        if last is not None and (found := last.classification) is not None and found.sure:
            candidates = self._candidates.of(found.category)
            return Plan(steps, "routed", found.category, found.score, last.method, candidates, self.version)
        category = self._fallback_category
        return Plan(steps, _why_not(query, steps), category, None, None, self._candidates.of(category), self.version)


def _header(place: str | None) -> bytes | None:
    """The name of a request header, as ASGI has it, that `header:x-tenant` means."""
    return None if place is None else place.removeprefix("header:").lower().encode()


def _why_not(query: Query, steps: Sequence[Step]) -> Reason:
    for step in steps:
        if step.failure is not None:
            return step.failure
    return "unsure" if query.has_text else "no_text"
