"""From a plan's candidates to the first that can serve, leased."""

import asyncio
from dataclasses import dataclass

from vllm_lora_router.pool.leases import NotLeased
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.serving import Adapters, Lease
from vllm_lora_router.values import Candidate, Plan, Reason


@dataclass(frozen=True, slots=True)
class Taken:
    """The candidate that serves, and why it is that one."""

    candidate: Candidate
    reason: Reason
    lease: Lease | None = None  # None for the base
    refused: tuple[tuple[str, str], ...] = ()  # adapter, why it does not serve


async def take(router: Router, plan: Plan, adapters: Adapters | None, tenant: str | None) -> Taken:
    """The first candidate that can be leased within `router.adapters.max_wait_ms`, waiting for its slot after that."""
    refused: list[tuple[str, str]] = []
    deadline: float | None = None
    for candidate in (*plan.candidates, router.base_alone):
        reason = plan.reason if candidate is plan.candidates[0] else "not_loadable"
        if candidate.adapter is None:
            return Taken(candidate, reason, None, tuple(refused))
        if adapters is None:
            refused.append((candidate.adapter, "the server has no LoRA"))
            continue
        lease = adapters.lease_now(candidate.adapter, tenant)
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
                continue
        await enter(lease)
        return Taken(candidate, reason, lease, tuple(refused))
    raise AssertionError("the base stands last and needs no lease")


async def foresee(
    router: Router, plan: Plan, adapters: Adapters | None, tenant: str | None
) -> tuple[Candidate, Reason]:
    """What `take` would take, as far as that can be told without loading anything."""
    for candidate in plan.candidates:
        if candidate.adapter is None or (adapters and await adapters.can_serve(candidate.adapter, tenant)):
            return candidate, plan.reason if candidate is plan.candidates[0] else "not_loadable"
    return router.base_alone, "not_loadable"


async def enter(lease: Lease) -> None:
    """Waits for the lease's slot; one that is given up is released."""
    try:
        await lease.enter()
    except BaseException:
        lease.release()
        raise
