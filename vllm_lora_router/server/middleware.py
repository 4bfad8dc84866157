"""The middleware that walks a request's way once: bytes, queries, plan, decision, edit, and on to vLLM."""

import asyncio
import logging
import time
import uuid
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_lora_router.record import headers as response_headers
from vllm_lora_router.record.log import log
from vllm_lora_router.requests import body
from vllm_lora_router.requests.shapes import SHAPES, Shape
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import wire
from vllm_lora_router.server.model_list import with_auto_name
from vllm_lora_router.server.serving import Engine, Serving
from vllm_lora_router.values import FAILURES, Decision, Edit, Outcome, Plan, Written

logger = logging.getLogger("vllm_lora_router.server")

# vLLM's CORS exposes no headers: without this a page in a browser could not read ours.
_EXPOSED = (b"access-control-expose-headers", ", ".join(response_headers.NAMES).encode())


class LoraRouterMiddleware:
    """Routes requests whose `model` is an auto name; every other reaches the application byte for byte."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self.serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        router, engine = self.serving.router, self.serving.engine
        if scope["type"] != "http" or router is None or engine is None:
            await self.app(scope, receive, send)
            return
        path, method = wire.path_of(scope), scope["method"]
        if path == "/v1/models" and method == "GET":
            await self.app(scope, receive, with_auto_name(router.loaded.config.auto_model_name, send))
            return
        shape = SHAPES.get(path) if method == "POST" else None
        if shape is None or not wire.is_json(scope):
            await self.app(scope, receive, send)
            return
        content = await wire.read_body(receive)
        if content is None:
            return
        began = time.perf_counter()
        try:
            members = body.fields(content) if router.takes(body.model_of(content), engine.served_names) else None
        except body.NotAnObject:
            members = None  # vLLM says what is wrong with it
        if members is None:
            await self.app(scope, wire.replay(content, receive), send)
            return
        ahead = wire.Ahead(receive)
        planning = asyncio.ensure_future(_plan(router, shape, members))
        try:
            if not await ahead.done_or_gone(planning):
                return
            plan = planning.result()
            if router.rejects_failures and plan.reason in FAILURES:
                await _rejection(plan)(scope, receive, send)
                return
            request_id = (wire.header(scope, b"x-request-id") or uuid.uuid4().hex.encode()).decode("latin-1")
            decision, edited = _decide(router, engine, shape, members, plan, request_id, began)
            if router.logs_decisions:
                log(decision)
            changed = {
                b"x-request-id": request_id.encode("latin-1"),
                b"content-length": str(len(edited)).encode(),
            }
            await self._hand_on(decision, wire.with_headers(scope, changed), wire.replay(edited, ahead.receive), send)
        finally:
            planning.cancel()
            ahead.close()

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


async def _plan(router: Router, shape: Shape, members: dict[str, Any]) -> Plan:
    try:
        return await router.plan(shape.read(members))
    except Exception:
        # Routing never turns a good request into an error.
        logger.exception("a request could not be planned; it takes default_model")
        return router.fallback("error")


def _decide(
    router: Router, engine: Engine, shape: Shape, members: dict[str, Any], plan: Plan, request_id: str, began: float
) -> tuple[Decision, bytes]:
    candidate, reason = router.choose(plan, engine.can_serve)
    edit = Edit(candidate.model, candidate.system_prompt, candidate.system_prompt_mode, candidate.reasoning)
    edited = dict(members)
    try:
        written = shape.write(edited, edit)
    except Exception:
        logger.exception("an edit could not be written; the request gets the model alone")
        edited, written = {**members, "model": body.dump(candidate.model)}, Written()
    content = body.join_object(edited)
    overhead_ms = (time.perf_counter() - began) * 1000
    return Decision(shape.id_prefix + request_id, plan, candidate, reason, written, overhead_ms), content


def _rejection(plan: Plan) -> JSONResponse:
    step = next((step for step in plan.steps if step.failure == plan.reason), None)
    what = f"the {step.method} classifier: {plan.reason}" if step else plan.reason
    message = f"The request could not be routed ({what}) and router.on_error is reject. Try again, or name a model."
    error = {"message": message, "type": "ServiceUnavailableError", "param": "model", "code": 503}
    return JSONResponse({"error": error}, 503, headers={"x-lora-router-reason": plan.reason})
