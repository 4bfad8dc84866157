"""From a plan's candidates to the first that can serve, leased; and from a name to the version it stands for."""

import asyncio
import logging

from msgspec import Struct

from vllm_lora_router.adapters.runtime.lease import AnothersAdapter, NotLeased
from vllm_lora_router.protocols.routes import Route, is_guarded
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.state import Adapters, Lease
from vllm_lora_router.types import Candidate, Plan, Reason

logger = logging.getLogger("vllm_lora_router.server")


class Taken(Struct, frozen=True):
    """The candidate that serves, and why it is that one."""

    candidate: Candidate
    reason: Reason
    model: str  # what the request's `model` must be
    lease: Lease | None = None  # None for the base
    refused: tuple[tuple[str, str], ...] = ()  # adapter, why it does not serve

    def release(self) -> None:
        if self.lease is not None:
            self.lease.release()


async def take(
    router: Router, plan: Plan, adapters: Adapters | None, tenant: str | None, *, may_load: bool = True
) -> Taken:
    """The first candidate that can be leased within `router.adapters.max_wait_ms`, waiting for its slot after that.

    Args:
        may_load: else only what is in the engine's memory serves.
    """
    refused: list[tuple[str, str]] = []
    instead: Reason = "not_loadable"
    deadline: float | None = None
    candidates = candidates_of(router, plan)
    for candidate in (*candidates, router.base_alone):
        reason = _reason(router, plan, candidate, instead)
        if candidate.adapter is None:
            return Taken(candidate, reason, candidate.model, None, tuple(refused))
        if adapters is None:
            refused.append((candidate.adapter, "the server has no LoRA"))
            continue
        lease = adapters.lease_now(candidate.adapter, tenant)
        if lease is None and not may_load:
            refused.append((candidate.adapter, "it is not in memory, and this path is open to everybody"))
            continue
        if lease is None:
            deadline = deadline or asyncio.get_running_loop().time() + router.max_wait_s
            try:
                async with asyncio.timeout_at(deadline):
                    lease = await adapters.lease(candidate.adapter, tenant)
            except TimeoutError:
                why = f"it was not ready within router.adapters.max_wait_ms ({router.max_wait_s * 1000:g} ms)"
                refused.append((candidate.adapter, why))
                continue
            except NotLeased as not_leased:
                refused.append((candidate.adapter, str(not_leased)))
                if isinstance(not_leased, AnothersAdapter) and candidate is plan.candidates[0]:
                    instead = "not_allowed"
                continue
        await enter(lease)
        return Taken(candidate, reason, lease.model, lease, tuple(refused))
    raise AssertionError("the base stands last and needs no lease")


async def foresee(router: Router, plan: Plan, adapters: Adapters | None, tenant: str | None) -> Taken:
    """What `take` would take, as far as that can be told without loading anything.

    An adapter that nobody has asked for yet has no name in vLLM: its prompt is rendered under the base's.
    """
    instead: Reason = "not_loadable"
    for candidate in (*candidates_of(router, plan), router.base_alone):
        reason = _reason(router, plan, candidate, instead)
        if candidate.adapter is None:
            return Taken(candidate, reason, candidate.model)
        if adapters is None:
            continue
        if (lease := adapters.lease_now(candidate.adapter, tenant, loaded=False)) is not None:
            return Taken(candidate, reason, lease.model, lease)
        if await adapters.can_serve(candidate.adapter, tenant):
            return Taken(candidate, reason, router.base_alone.model)
        if candidate is plan.candidates[0] and await adapters.is_anothers(candidate.adapter, tenant):
            instead = "not_allowed"
    raise AssertionError("the base stands last and needs no lease")


async def lease_named(
    adapters: Adapters, route: Route | None, path: str, name: str, tenant: str | None
) -> Lease | None:
    """A lease on what the client named; none where vLLM itself knows the name, or says that nobody does."""
    if route is not None and route.dry:
        return adapters.lease_now(name, tenant, by_client=True, loaded=False)
    lease = adapters.lease_now(name, tenant, by_client=True)
    if lease is None and is_guarded(path):
        try:
            lease = await adapters.lease(name, tenant, by_client=True)
        except NotLeased as reason:
            logger.debug("adapter %r, named by a client: %s", name, reason)
    if lease is not None:
        await enter(lease)
    return lease


async def enter(lease: Lease) -> None:
    """Waits for the lease's slot; one that is given up is released."""
    try:
        await lease.enter()
    except BaseException:
        lease.release()
        raise


def candidates_of(router: Router, plan: Plan) -> tuple[Candidate, ...]:
    """What may serve: where routing only observes, nothing of the plan does."""
    return router.default if router.observes else plan.candidates


def _reason(router: Router, plan: Plan, candidate: Candidate, instead: Reason) -> Reason:
    # `instead` is why the first candidate does not serve.
    if router.observes:
        return "observe"
    return plan.reason if candidate is plan.candidates[0] else instead
