"""The middleware that walks a request's way once: bytes, queries, plan, lease, edit, and on to vLLM."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_lora_router.record.log import log, log_asked_again
from vllm_lora_router.requests import body
from vllm_lora_router.requests.shape import Shape
from vllm_lora_router.requests.table import Route
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import wire
from vllm_lora_router.server.incoming import Incoming
from vllm_lora_router.server.leasing import Taken, foresee, lease_named, take
from vllm_lora_router.server.model_list import with_names
from vllm_lora_router.server.outgoing import Again, RoutedResponse, unrouted
from vllm_lora_router.server.serving import Adapters, Lease, Serving
from vllm_lora_router.values import FAILURES, Decision, Edit, Plan, Written

logger = logging.getLogger("vllm_lora_router.server")

T = TypeVar("T")


class LoraRouterMiddleware:
    """Routes requests whose `model` is an auto name; a request that names an adapter gets a lease on it.

    Every other reaches the application byte for byte.
    """

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self.serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        router = self.serving.router
        if scope["type"] != "http" or router is None:
            await self.app(scope, receive, send)
            return
        path, method = wire.path_of(scope), scope["method"]
        if method == "POST" and not path.startswith("/v1/router/"):
            await self._post(router, path, scope, receive, send)
        elif method == "GET" and path == "/v1/models":
            await self._list_models(router, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _list_models(self, router: Router, scope: Scope, receive: Receive, send: Send) -> None:
        adapters, tenant = self.serving.adapters, wire.text_header(scope, router.tenant_header)
        names = await adapters.names(tenant) if adapters is not None else ()
        hidden = adapters.owns if adapters is not None else lambda name: False
        await self.app(scope, receive, with_names([router.loaded.config.auto_model_name, *names], hidden, send))

    async def _post(self, router: Router, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        adapters = self.serving.adapters
        if not wire.is_json(scope):
            with adapters.unread() if adapters is not None else nullcontext():
                await self.app(scope, receive, send)
            return
        incoming = await Incoming.read(scope, path, receive)
        if incoming is None:
            return
        route, model = incoming.route, incoming.model
        if route is not None and incoming.members is not None and router.takes(model, self.serving.served_names):
            await self._route(router, route, incoming, receive, send)
            return
        if model is not None and model in router.auto_names:
            send = unrouted(model, path, send)
        elif adapters is not None and model and model not in self.serving.served_names:
            await self._serve_named(router, adapters, model, incoming, receive, send)
            return
        await self.app(incoming.scope, incoming.hand_on(receive), send)

    async def _route(self, router: Router, route: Route, incoming: Incoming, receive: Receive, send: Send) -> None:
        shape = route.shape_of(incoming.members or {})
        adapters, tenant = self.serving.adapters, wire.text_header(incoming.scope, router.tenant_header)
        ahead = wire.Ahead(receive)
        taken: Taken | None = None
        try:
            work = _plan_and_take(router, route, shape, incoming, adapters, tenant)
            found = await _unless_gone(ahead, work, lambda found: found[1] and found[1].lease)
            if found is None:
                return
            plan, taken = found
            if taken is None:
                await _rejection(plan)(incoming.scope, receive, send)
                return
            edited = await incoming.work(lambda: _edit(shape, incoming, plan, taken))
            if taken.lease is not None and edited.runs_on:
                taken.lease.keep()
            if router.logs_decisions and not route.dry:
                log(edited.decision)
            if edited.request_id is not None:
                incoming.scope = wire.with_headers(incoming.scope, {b"x-request-id": edited.request_id.encode()})
            if route.header is not None:
                incoming.name(taken.model)
            incoming.write(edited.content)
            browser = wire.header(incoming.scope, b"origin") is not None
            response = RoutedResponse(edited.decision, send, edited.again, browser=browser)
            del edited  # it holds the client's body
            await self._hand_on(response, incoming, ahead.receive, counted=not route.dry)
        finally:
            ahead.close()
            if taken is not None:
                taken.release()

    async def _hand_on(self, response: RoutedResponse, incoming: Incoming, receive: Receive, *, counted: bool) -> None:
        if counted:
            self.serving.tally.decided(response.decision)
        try:
            await self.app(incoming.scope, incoming.hand_on(receive), response.send)
            if (content := response.ask_again()) is not None:
                # A good request is never lost to what we wrote: a prompt too long for the model, or a template that
                # knows no system role.
                log_asked_again(response.decision)
                incoming.write(content)
                del content
                await self.app(incoming.scope, incoming.hand_on(receive), response.send)
        finally:
            if counted:
                self.serving.tally.ended(response.outcome())

    async def _serve_named(
        self, router: Router, adapters: Adapters, model: str, incoming: Incoming, receive: Receive, send: Send
    ) -> None:
        """A request that names its adapter itself: it waits for that one, and gets no other."""
        tenant = wire.text_header(incoming.scope, router.tenant_header)
        ahead = wire.Ahead(receive)
        lease: Lease | None = None
        try:
            work = _in_a_tuple(lease_named(adapters, incoming.route, incoming.path, model, tenant))
            found = await _unless_gone(ahead, work, lambda found: found[0])
            if found is None:
                return
            lease = found[0]
            if lease is not None and lease.model != model:
                await incoming.work(lambda: incoming.name(lease.model))
            if lease is not None and incoming.members is not None and body.runs_on(incoming.members):
                lease.keep()
            # A version's own name, which answers carry, stands in vLLM's registry too.
            with adapters.unread() if lease is None else nullcontext():
                await self.app(incoming.scope, incoming.hand_on(ahead.receive), send)
        finally:
            ahead.close()
            if lease is not None:
                lease.release()


async def _unless_gone(
    ahead: wire.Ahead, work: Coroutine[Any, Any, T], lease_of: Callable[[T], Lease | None]
) -> T | None:
    """What `work` gives; None when the client left before that, and then nothing of it goes on."""
    task = asyncio.ensure_future(work)

    def give_back(done: asyncio.Task[T]) -> None:
        if not done.cancelled() and done.exception() is None and (lease := lease_of(done.result())) is not None:
            lease.release()

    handed_on = False
    try:
        if not await ahead.done_or_gone(task):
            return None
        found = task.result()
        handed_on = True
        return found
    finally:
        if not handed_on:
            # It may end in this very moment.
            task.add_done_callback(give_back)
            task.cancel()


async def _in_a_tuple(work: Coroutine[Any, Any, T]) -> tuple[T]:
    return (await work,)


async def _plan_and_take(
    router: Router, route: Route, shape: Shape, incoming: Incoming, adapters: Adapters | None, tenant: str | None
) -> tuple[Plan, Taken | None]:
    """The plan, and what was leased for it: nothing where the request must not be served unrouted."""
    try:
        members = incoming.members or {}
        plan = await router.plan(await incoming.work(lambda: shape.read(members)))
    except Exception:
        # Routing never turns a good request into an error.
        logger.exception("a request could not be planned; it takes default_model")
        plan = router.fallback("error")
    if router.rejects_failures and plan.reason in FAILURES:
        return plan, None
    if route.dry:
        return plan, await foresee(router, plan, adapters, tenant)
    return plan, await take(router, plan, adapters, tenant, may_load=route.guarded)


@dataclass(frozen=True)
class _Edited:
    """A request as it is handed on."""

    decision: Decision
    content: bytes
    request_id: str | None  # to be added as X-Request-Id
    runs_on: bool
    again: Again | None  # how to ask with the model alone; None: nothing else was written


def _edit(shape: Shape, incoming: Incoming, plan: Plan, taken: Taken) -> _Edited:
    candidate = taken.candidate
    bare = dict(incoming.members or {})
    given = (wire.header(incoming.scope, b"x-request-id") or b"").decode("latin-1") or None
    request_id, answer_id = shape.identify(bare, given, uuid.uuid4().hex)
    bare["model"] = body.dump(taken.model)
    edited = dict(bare)
    try:
        edit = Edit(taken.model, candidate.system_prompt, candidate.system_prompt_mode, candidate.reasoning)
        written = shape.write(edited, edit)
    except Exception:
        logger.exception("an edit could not be written; the request gets the model alone")
        edited, written = bare, Written()
    content = body.join(edited)
    decision = Decision(
        id=answer_id,
        plan=plan,
        candidate=candidate,
        reason=taken.reason,
        written=written,
        overhead_ms=(time.perf_counter() - incoming.began) * 1000,
        version=None if taken.lease is None else taken.lease.version.engine_name,
        refused=taken.refused,
    )

    def again() -> tuple[Decision, bytes]:
        return replace(decision, written=Written()), body.join(bare)

    return _Edited(decision, content, request_id, body.runs_on(bare), again if written.beyond_model else None)


def _rejection(plan: Plan) -> JSONResponse:
    step = next((step for step in plan.steps if step.failure == plan.reason), None)
    what = f"the {step.method} classifier: {plan.reason}" if step else plan.reason
    message = f"The request could not be routed ({what}) and router.on_error is reject. Try again, or name a model."
    error = {"message": message, "type": "ServiceUnavailableError", "param": "model", "code": 503}
    return JSONResponse({"error": error}, 503, headers={"x-lora-router-reason": plan.reason})
