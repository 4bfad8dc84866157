"""Lease the first candidate that can serve a request."""

import asyncio
import logging

from msgspec import Struct

from vllm_lora_router.adapters.runtime.lease import (
    AdapterUnavailableError,
    LeaseRefusedError,
    OtherTenantsAdapterError,
)
from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.guard import Access
from vllm_lora_router.server.state import Adapters, Lease
from vllm_lora_router.types import Candidate, Plan, Reason

logger = logging.getLogger("vllm_lora_router.server")


class Target(Struct, frozen=True):
    """The candidates of one request, and the terms on which they are leased."""

    candidates: tuple[Candidate, ...]  # tried in this order; the last one needs no lease
    reason: Reason  # why the first candidate serves
    tenant: str | None
    path: str
    access: Access = "full"  # requests without full access load no adapter
    has_fixed_reason: bool = False  # the reason stays the same when a later candidate serves
    by_client: bool = False  # the client named the adapter, which `client_may_name` may forbid
    max_wait_s: float | None = None  # for all candidates together; None: no deadline

    def can_name(self, adapter: str) -> bool:
        """Return whether a request to this path can name the adapter. A header contains Latin-1 only."""
        if adapter.isascii() or (route := ROUTES.get(self.path)) is None or route.adapter_header is None:
            return True
        return max(adapter) <= "\xff"

    def fallback_reason(self, *, is_other_tenants: bool) -> Reason:
        """Return why a later candidate serves, after the first one could not."""
        if self.has_fixed_reason:
            return self.reason
        return "not_allowed" if is_other_tenants else "not_loadable"


class Selection(Struct, frozen=True):
    """The candidate that serves a request, with its lease."""

    candidate: Candidate
    reason: Reason  # why this candidate serves
    model: str  # the value of the request's `model` that makes vLLM use this candidate
    lease: Lease | None = None  # None: the base model, or a name that vLLM resolves
    skipped: tuple[tuple[str, str], ...] = ()  # (adapter, why it cannot serve)

    def release(self) -> None:
        """Release the lease."""
        if self.lease is not None:
            self.lease.release()


def routed_target(router: Router, plan: Plan, tenant: str | None, path: str, access: Access = "full") -> Target:
    """Return the target of a routed request: the plan's candidates, or the default ones in observe mode."""
    candidates = router.default if router.observe_only else plan.candidates
    return Target(
        (*candidates, router.base_only),
        "observe" if router.observe_only else plan.reason,
        tenant,
        path,
        access,
        has_fixed_reason=router.observe_only,
        max_wait_s=router.max_wait_s,
    )


async def lease_first(target: Target, adapters: Adapters | None) -> Selection:
    """Lease the first candidate that can serve within the target's deadline, then wait for its slot.

    Args:
        adapters: None if the server runs without LoRA.

    Raises:
        AdapterUnavailableError: the client named an adapter that exists and cannot serve now.
    """
    reason, deadline = target.reason, None
    skipped: list[tuple[str, str]] = []
    for candidate in target.candidates:
        if candidate.adapter is None:
            return Selection(candidate, reason, candidate.model, None, () if target.by_client else tuple(skipped))
        lease: Lease | None = None
        if adapters is not None and target.can_name(candidate.adapter):
            lease = adapters.lease_now(candidate.adapter, target.tenant, by_client=target.by_client)
        if lease is None:
            if deadline is None and target.max_wait_s is not None:
                deadline = asyncio.get_running_loop().time() + target.max_wait_s
            try:
                lease = await _load(candidate.adapter, target, adapters, deadline)
            except LeaseRefusedError as error:
                if target.by_client and isinstance(error, AdapterUnavailableError):
                    raise  # vLLM would answer that the model does not exist
                skipped.append((candidate.adapter, str(error)))
                logger.debug("adapter %r: not leased (%s)", candidate.adapter, error)
                if candidate is target.candidates[0]:
                    reason = target.fallback_reason(is_other_tenants=isinstance(error, OtherTenantsAdapterError))
                continue
        await _enter(lease)
        return Selection(candidate, reason, lease.model, lease, tuple(skipped))
    raise AssertionError("the last candidate needs no lease")


async def preview(target: Target, adapters: Adapters | None) -> Selection:
    """Return what `lease_first` would select, as far as that is known without loading an adapter.

    An adapter that no request has used yet has no name in vLLM: its prompt is rendered under the base model's name.
    """
    reason = target.reason
    for candidate in target.candidates:
        name = candidate.adapter
        if name is None:
            return Selection(candidate, reason, candidate.model)
        is_first, is_other_tenants = candidate is target.candidates[0], False
        if adapters is not None and target.can_name(name):
            lease = adapters.lease_now(name, target.tenant, by_client=target.by_client, require_loaded=False)
            if lease is not None:
                return Selection(candidate, reason, lease.model, lease)
            if not target.by_client:
                if await adapters.can_serve(name, target.tenant):
                    return Selection(candidate, reason, target.candidates[-1].model)
                is_other_tenants = is_first and await adapters.belongs_to_other_tenant(name, target.tenant)
        if is_first:
            reason = target.fallback_reason(is_other_tenants=is_other_tenants)
    raise AssertionError("the last candidate needs no lease")


async def _load(name: str, target: Target, adapters: Adapters | None, deadline: float | None) -> Lease:
    """Lease an adapter that may have to be loaded first.

    Raises:
        LeaseRefusedError: the adapter cannot serve, may not be loaded, or is not ready before the deadline.
    """
    if adapters is None:
        raise LeaseRefusedError("LoRA is disabled on this server; start it with --enable-lora")
    if not target.can_name(name):
        raise LeaseRefusedError(f"requests to {target.path} name the adapter in a header, which holds Latin-1 only")
    if target.access != "full":
        raise LeaseRefusedError(f"not loaded, and requests to {target.path} cannot load adapters (no API key check)")
    try:
        async with asyncio.timeout_at(deadline):
            return await adapters.lease(name, target.tenant, by_client=target.by_client)
    except TimeoutError:
        if target.max_wait_s is None:
            raise
        raise LeaseRefusedError(
            f"not ready within router.adapters.max_wait_ms ({target.max_wait_s * 1000:g} ms)"
        ) from None


async def _enter(lease: Lease) -> None:
    """Wait for the lease's slot, and release the lease if the wait is cancelled."""
    try:
        await lease.acquire_slot()
    except BaseException:
        lease.release()
        raise
