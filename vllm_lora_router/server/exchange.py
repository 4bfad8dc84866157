"""From a request to its decision: plan, lease, and the body as it is handed on."""

import logging
import time
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.ids import new_id
from vllm_lora_router.protocols.protocol import Shape
from vllm_lora_router.protocols.routes import Route
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import asgi
from vllm_lora_router.server.client import client_of
from vllm_lora_router.server.incoming import Incoming
from vllm_lora_router.server.leasing import Taken, foresee, lease_named, take
from vllm_lora_router.server.response import Again
from vllm_lora_router.server.state import Adapters, Lease
from vllm_lora_router.types import FAILURES, AppliedEdit, Candidate, Client, Decision, Edit, Plan, Query, RequestInfo

logger = logging.getLogger("vllm_lora_router.server")


class Considered(Struct, frozen=True):
    """A request with its plan, and what was leased for it."""

    plan: Plan
    taken: Taken | None  # None: it must not be served unrouted
    queries: Sequence[Query]
    client: Client
    ms: dict[str, float]

    @property
    def lease(self) -> Lease | None:
        return self.taken.lease if self.taken is not None else None


class Edited(Struct, frozen=True):
    """A request as it is handed on."""

    decision: Decision
    content: bytes
    request_id: str | None  # to be added as X-Request-Id
    runs_on: bool
    again: Again | None  # how to ask with the model alone; None: nothing else was written


async def consider(
    router: Router, route: Route, shape: Shape, incoming: Incoming, adapters: Adapters | None
) -> Considered:
    """The plan of a request that names no adapter, and the first candidate that serves."""
    client = client_of(router, incoming.scope, incoming.members or {})
    began = time.perf_counter()
    queries, plan = await plan_of(router, shape, incoming, client)
    planned = time.perf_counter()
    ms = {"plan": (planned - began) * 1000}
    if router.rejects_failures and plan.reason in FAILURES and not router.observes:
        return Considered(plan, None, queries, client, ms)
    if route.dry:
        taken = await foresee(router, plan, adapters, client.tenant)
    else:
        taken = await take(router, plan, adapters, client.tenant, may_load=route.guarded)
    ms["lease"] = (time.perf_counter() - planned) * 1000
    return Considered(plan, taken, queries, client, ms)


async def plan_of(router: Router, shape: Shape, incoming: Incoming, client: Client) -> tuple[Sequence[Query], Plan]:
    """What is asked, and the plan for it; never an error."""
    queries: Sequence[Query] = ()
    try:
        members = incoming.members or {}
        queries = await incoming.work(lambda: shape.read(members))
        route = incoming.route
        calls = route is not None and route.guarded and not route.dry
        return queries, await router.plan(queries, client, model=incoming.model, calls=calls)
    except Exception:
        # Routing never turns a good request into an error.
        logger.exception("a request could not be planned; it takes default_model")
        return queries, router.fallback("error")


def edit(shape: Shape, incoming: Incoming, considered: Considered, taken: Taken) -> Edited:
    """The body with the decision written in."""
    began = time.perf_counter()
    candidate = taken.candidate
    bare = dict(incoming.members or {})
    request_id, answer_id = shape.identify(bare, _given_id(incoming), new_id())
    bare["model"] = json_edit.dump(taken.model)
    edited = dict(bare)
    try:
        edits = Edit(taken.model, candidate.system_prompt, candidate.system_prompt_mode, candidate.reasoning)
        written = shape.write(edited, edits)
    except Exception:
        logger.exception("an edit could not be written; the request gets the model alone")
        edited, written = bare, AppliedEdit()
    content = json_edit.join(edited)
    now = time.perf_counter()
    version = None if taken.lease is None else taken.lease.version
    decision = Decision(
        id=answer_id,
        plan=considered.plan,
        candidate=candidate,
        reason=taken.reason,
        applied=written,
        overhead_ms=(now - incoming.began) * 1000,
        version=None if version is None else version.engine_name,
        skipped=taken.refused,
        content_digest=None if version is None else version.digest,
        request=RequestInfo(
            incoming.path, shape.api, incoming.model, considered.client, max(len(considered.queries), 1)
        ),
        timings_ms={**considered.ms, "edit": (now - began) * 1000},
    )

    def again() -> tuple[Decision, bytes]:
        return replace(decision, applied=AppliedEdit()), json_edit.join(bare)

    return Edited(decision, content, request_id, json_edit.runs_on(bare), again if written.more_than_model else None)


class Named(Struct, frozen=True):
    """A request that names its model itself, and what routing would have said of it."""

    lease: Lease | None  # None: vLLM itself knows the name, or says that nobody does
    plan: Plan | None  # None: nobody asked
    queries: Sequence[Query]
    client: Client


async def consider_named(
    router: Router, incoming: Incoming, adapters: Adapters | None, client: Client, shape: Shape | None
) -> Named:
    """A lease on what the client named.

    Args:
        shape: what to read the request by, where routing is asked too; None where it is not.
    """
    plan: Plan | None = None
    queries: Sequence[Query] = ()
    if shape is not None:
        queries, plan = await plan_of(router, shape, incoming, client)
    # Nothing may be awaited after it: who is given up in between would never give it back.
    return Named(await _lease_named(incoming, adapters, client), plan, queries, client)


def decision_named(
    router: Router, shape: Shape, incoming: Incoming, named: Named, base: str
) -> tuple[Decision, str | None]:
    """What was done with a request that names its model, and the X-Request-Id to add.

    Args:
        base: what serves a request that names nothing.
    """
    model = incoming.model or base
    version = None if named.lease is None else named.lease.version
    candidate = Candidate(model, None if version is None else model, source="the client names it")
    given = _given_id(incoming)
    request_id = None if given else new_id()
    plan = named.plan or Plan((), "named", None, None, None, (candidate,), router.version)
    decision = Decision(
        id=f"{shape.id_prefix}{given or request_id}",
        plan=plan,
        candidate=candidate,
        reason="named" if named.plan is None else "observe",
        applied=AppliedEdit(),
        overhead_ms=(time.perf_counter() - incoming.began) * 1000,
        version=None if version is None else version.engine_name,
        content_digest=None if version is None else version.digest,
        request=RequestInfo(incoming.path, shape.api, incoming.model, named.client, max(len(named.queries), 1)),
    )
    return decision, request_id


async def _lease_named(incoming: Incoming, adapters: Adapters | None, client: Client) -> Lease | None:
    if adapters is None or not incoming.model:
        return None
    return await lease_named(adapters, incoming.route, incoming.path, incoming.model, client.tenant)


def _given_id(incoming: Incoming) -> str | None:
    return (asgi.header(incoming.scope, b"x-request-id") or b"").decode("latin-1") or None
