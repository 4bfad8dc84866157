"""The middleware that walks a request's way once: bytes, queries, plan, lease, edit, and on to vLLM."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any, TypeVar

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_lora_router.pool.leases import NotLeased
from vllm_lora_router.record import headers as response_headers
from vllm_lora_router.record.log import log
from vllm_lora_router.requests import body
from vllm_lora_router.requests.paths import BY_HEADER, is_guarded, only_renders
from vllm_lora_router.requests.shapes import SHAPES, Shape
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import wire
from vllm_lora_router.server.leasing import Taken, enter, take
from vllm_lora_router.server.model_list import with_names
from vllm_lora_router.server.serving import Adapters, Lease, Serving
from vllm_lora_router.values import FAILURES, Decision, Edit, Outcome, Plan, Written

logger = logging.getLogger("vllm_lora_router.server")

T = TypeVar("T")

# vLLM's CORS exposes no headers: without this a page in a browser could not read ours.
_EXPOSED = (b"access-control-expose-headers", ", ".join(response_headers.NAMES).encode())


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
        if not wire.is_json(scope) or path in BY_HEADER:
            if adapters is None:
                await self.app(scope, receive, send)
                return
            with adapters.unread():
                await self.app(scope, receive, send)
            return
        content = await wire.read_body(receive)
        if content is None:
            return
        began = time.perf_counter()
        model = body.model_of(content)
        shape = SHAPES.get(path)
        if shape is not None and router.takes(model, self.serving.served_names):
            try:
                members = body.fields(content)
            except body.NotAnObject:
                pass  # vLLM says what is wrong with it
            else:
                await self._route(router, shape, members, began, scope, receive, send)
                return
        elif adapters is not None and model and model not in self.serving.served_names:
            await self._serve_named(router, adapters, path, model, content, scope, receive, send)
            return
        await self.app(scope, wire.replay(content, receive), send)

    async def _route(
        self,
        router: Router,
        shape: Shape,
        members: dict[str, Any],
        began: float,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        tenant = wire.text_header(scope, router.tenant_header)
        ahead = wire.Ahead(receive)
        lease: Lease | None = None
        try:
            work = _plan_and_take(router, shape, members, self.serving.adapters, tenant)
            found = await _unless_gone(ahead, work, lambda found: found[1] and found[1].lease)
            if found is None:
                return
            plan, taken = found
            if taken is None:
                await _rejection(plan)(scope, receive, send)
                return
            lease = taken.lease
            request_id = (wire.header(scope, b"x-request-id") or uuid.uuid4().hex.encode()).decode("latin-1")
            decision, edited = _decide(shape, members, plan, taken, request_id, began)
            if router.logs_decisions:
                log(decision)
            changed = {
                b"x-request-id": request_id.encode("latin-1"),
                b"content-length": str(len(edited)).encode(),
            }
            await self._hand_on(decision, wire.with_headers(scope, changed), wire.replay(edited, ahead.receive), send)
        finally:
            ahead.close()
            if lease is not None:
                lease.release()

    async def _serve_named(
        self,
        router: Router,
        adapters: Adapters,
        path: str,
        model: str,
        content: bytes,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """A request that names its adapter itself: it waits for that one, and gets no other."""
        tenant = wire.text_header(scope, router.tenant_header)
        ahead = wire.Ahead(receive)
        lease: Lease | None = None
        try:
            found = await _unless_gone(ahead, _lease_named(adapters, path, model, tenant), lambda found: found[0])
            if found is None:
                return
            lease = found[0]
            if lease is not None and lease.model != model:
                content = body.join_object({**body.fields(content), "model": body.dump(lease.model)})
                scope = wire.with_headers(scope, {b"content-length": str(len(content)).encode()})
            if lease is not None and body.runs_on(content):
                lease.keep()
            # A version's own name, which answers carry, stands in vLLM's registry too.
            with adapters.unread() if lease is None else nullcontext():
                await self.app(scope, wire.replay(content, ahead.receive), send)
        finally:
            ahead.close()
            if lease is not None:
                lease.release()

    async def _hand_on(self, decision: Decision, scope: Scope, receive: Receive, send: Send) -> None:
        self.serving.tally.decided(decision)
        response = _Response(decision, send, browser=wire.header(scope, b"origin") is not None)
        try:
            await self.app(scope, receive, response.send)
        finally:
            self.serving.tally.ended(response.outcome())


class _Response:
    """The way back: adds the headers to the response's start and notes how the response went."""

    def __init__(self, decision: Decision, send: Send, *, browser: bool) -> None:
        self._decision = decision
        self._send = send
        self._headers = [*response_headers.headers(decision), *([_EXPOSED] if browser else ())]
        self._began = time.perf_counter()
        self._status: int | None = None
        self._first_byte_ms: float | None = None
        self._complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = wire.add_headers(message, self._headers)
        elif message["type"] == "http.response.body":
            if self._first_byte_ms is None and message.get("body"):
                self._first_byte_ms = self._ms()
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def outcome(self) -> Outcome:
        return Outcome(self._decision, self._status, self._first_byte_ms, self._ms(), aborted=not self._complete)

    def _ms(self) -> float:
        return (time.perf_counter() - self._began) * 1000


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


async def _plan_and_take(
    router: Router, shape: Shape, members: dict[str, Any], adapters: Adapters | None, tenant: str | None
) -> tuple[Plan, Taken | None]:
    """The plan, and what was leased for it: nothing where the request must not be served unrouted."""
    try:
        plan = await router.plan(shape.read(members))
    except Exception:
        # Routing never turns a good request into an error.
        logger.exception("a request could not be planned; it takes default_model")
        plan = router.fallback("error")
    if router.rejects_failures and plan.reason in FAILURES:
        return plan, None
    return plan, await take(router, plan, adapters, tenant)


async def _lease_named(adapters: Adapters, path: str, name: str, tenant: str | None) -> tuple[Lease | None]:
    """A lease on what the client named; none where vLLM itself knows the name, or says that nobody does."""
    if only_renders(path):
        return (adapters.lease_now(name, tenant, by_client=True, loaded=False),)
    lease = adapters.lease_now(name, tenant, by_client=True)
    if lease is None and is_guarded(path):
        try:
            lease = await adapters.lease(name, tenant, by_client=True)
        except NotLeased as reason:
            logger.debug("adapter %r, named by a client: %s", name, reason)
    if lease is not None:
        await enter(lease)
    return (lease,)


def _decide(
    shape: Shape, members: dict[str, Any], plan: Plan, taken: Taken, request_id: str, began: float
) -> tuple[Decision, bytes]:
    candidate = taken.candidate
    model = candidate.model if taken.lease is None else taken.lease.model
    edit = Edit(model, candidate.system_prompt, candidate.system_prompt_mode, candidate.reasoning)
    edited = dict(members)
    try:
        written = shape.write(edited, edit)
    except Exception:
        logger.exception("an edit could not be written; the request gets the model alone")
        edited, written = {**members, "model": body.dump(model)}, Written()
    content = body.join_object(edited)
    decision = Decision(
        id=shape.id_prefix + request_id,
        plan=plan,
        candidate=candidate,
        reason=taken.reason,
        written=written,
        overhead_ms=(time.perf_counter() - began) * 1000,
        version=None if taken.lease is None else taken.lease.version.engine_name,
        refused=taken.refused,
    )
    return decision, content


def _rejection(plan: Plan) -> JSONResponse:
    step = next((step for step in plan.steps if step.failure == plan.reason), None)
    what = f"the {step.method} classifier: {plan.reason}" if step else plan.reason
    message = f"The request could not be routed ({what}) and router.on_error is reject. Try again, or name a model."
    error = {"message": message, "type": "ServiceUnavailableError", "param": "model", "code": 503}
    return JSONResponse({"error": error}, 503, headers={"x-lora-router-reason": plan.reason})
