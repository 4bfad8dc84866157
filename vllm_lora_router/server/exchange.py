"""One request on its way through the middleware: its body, its plan, its lease and its edit."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from vllm_lora_router.ids import is_usable_id, new_id
from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import ApiProtocol, Members
from vllm_lora_router.protocols.routes import ROUTES, Route
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import asgi
from vllm_lora_router.server.client import MAX_MODEL_CHARACTERS, bounded, client_of
from vllm_lora_router.server.guard import Access
from vllm_lora_router.server.leasing import Selection, Target, lease_first, preview, routed_target
from vllm_lora_router.server.response import Response, Retry, RoutedResponse
from vllm_lora_router.server.state import Serving
from vllm_lora_router.types import (
    FAILURES,
    AppliedEdit,
    Candidate,
    Client,
    Decision,
    Edit,
    Plan,
    Query,
    Reason,
    RequestInfo,
)

logger = logging.getLogger("vllm_lora_router.server")

T = TypeVar("T")

Kind = Literal[
    "routed",  # the router chooses the adapter
    "observed",  # the client names the model, and the decision is recorded
    "named",  # the client names an adapter, which is leased
    "unrouted",  # the client sends an auto name to a path that is not routed
    "forwarded",  # any other request
]

# Larger bodies are read and edited in a thread, so that they do not delay the event loop: on a slow core, 96 KiB of
# short messages take more than a millisecond.
LARGE_BYTES = 96 * 1024
# After each step on a larger body, the event loop runs other requests first.
SMALL_BYTES = 16 * 1024

NO_HEADERS: Mapping[bytes, bytes] = {}


class BodyForwardedError(RuntimeError):
    """The body of a request was read after it was forwarded."""


class Exchange:
    """One request: its scope, its route and its JSON body.

    A body may have tens of megabytes, and a response may take minutes. The exchange therefore drops the body when it is
    forwarded, and raises `BodyForwardedError` when the body is read after that.
    """

    def __init__(self, scope: Scope, path: str, content: bytes, access: Access = "full") -> None:
        self.scope = scope
        self.path = path
        self.access: Access = access
        self.route: Route | None = ROUTES.get(path)
        self.is_dry_run = self.route is not None and self.route.dry_run  # the request runs nothing on the engine
        # When the body was complete: on the clock of `time.perf_counter`, and in nanoseconds since 1970.
        self.began_s, self.began_ns = time.perf_counter(), time.time_ns()
        self.kind: Kind = "forwarded"
        # The name in the body, or in the header that the route reads; a digest of it if it is longer than any model's.
        self.model: str | None = None
        self.is_object = False  # whether the body is a JSON object
        self._members: Members | None = None
        self._content: bytes | None = content  # None: forwarded

    @classmethod
    async def read(cls, scope: Scope, path: str, receive: Receive, access: Access = "full") -> "Exchange | None":
        """Read a complete request; return None if the client disconnects first."""
        content = await asgi.read_body(receive)
        if content is None:
            return None
        exchange = cls(scope, path, content, access)
        if len(content) > SMALL_BYTES:
            await exchange.run(exchange._parse)
        else:
            exchange._parse()
        return exchange

    async def run(self, work: Callable[[], T]) -> T:
        """Run work that takes time in proportion to the body: in a thread if the body is large."""
        size = 0 if self._content is None else len(self._content)
        if size > LARGE_BYTES:
            return await asyncio.to_thread(work)
        result = work()
        if size > SMALL_BYTES:
            await asyncio.sleep(0)
        return result

    @property
    def content(self) -> bytes:
        """The body.

        Raises:
            BodyForwardedError: the body was forwarded.
        """
        if self._content is None:
            raise self._forwarded_error()
        return self._content

    @property
    def members(self) -> Members:
        """The raw members of the JSON object in the body.

        Raises:
            BodyForwardedError: the body was forwarded.
            NotAnObjectError: the body is not a JSON object; see `is_object`.
        """
        if self._members is None:
            if self.is_object:
                raise self._forwarded_error()
            raise json_edit.NotAnObjectError(f"the body of the request to {self.path} is not a JSON object")
        return self._members

    def write(self, content: bytes, headers: Mapping[bytes, bytes] = NO_HEADERS) -> None:
        """Replace the body, and set headers like `add_headers`."""
        self._content = content
        self.scope = asgi.with_headers(self.scope, {**headers, b"content-length": b"%d" % len(content)})

    def add_headers(self, headers: dict[bytes, bytes]) -> None:
        """Set request headers, and replace the client's headers with the same names."""
        self.scope = asgi.with_headers(self.scope, headers)

    def set_model(self, model: str) -> None:
        """Replace the model's name in the body, or in the header that the route reads; all other bytes stay."""
        if not self.set_model_header(model):
            self.write(json_edit.join_members({**self.members, "model": json_edit.encode(model)}))

    def set_model_header(self, model: str) -> bool:
        """Replace the model's name in the header that the route reads; return False if the route reads none."""
        if self.route is None or self.route.adapter_header is None:
            return False
        self.add_headers({self.route.adapter_header: model.encode("latin-1", "replace")})
        return True

    def rewrite(self) -> None:
        """Replace the body by its members as they are now; the bytes of unchanged members stay."""
        self.write(json_edit.join_members(self.members))

    def forward_body(self, receive: Receive) -> Receive:
        """Drop the body, and return a `receive` that yields it once and then the messages of `receive`.

        Raises:
            BodyForwardedError: the body was forwarded already.
        """
        content = self._content
        if content is None:
            raise self._forwarded_error()
        self._content = self._members = None
        return asgi.replay_body(content, receive)

    @property
    def runs_in_background(self) -> bool:
        """Whether the request continues after its response has ended, if vLLM accepts it."""
        return self.path == "/v1/responses" and json_edit.runs_in_background(self.members)

    @property
    def request_id(self) -> str | None:
        """The X-Request-Id header."""
        return (asgi.header(self.scope, b"x-request-id") or b"").decode("latin-1") or None

    def _parse(self) -> None:
        try:
            self._members = json_edit.body_members(self.content)
        except json_edit.NotAnObjectError:
            return  # vLLM reports the error
        self.is_object = True
        if self.route is not None and self.route.adapter_header is not None:
            model = asgi.text_header(self.scope, self.route.adapter_header)
        else:
            model = json_edit.string_value(self._members.get("model"))
        self.model = None if model is None else bounded(model, MAX_MODEL_CHARACTERS)

    def _forwarded_error(self) -> BodyForwardedError:
        return BodyForwardedError(
            f"the body of the request to {self.path} has been forwarded; read it before `Exchange.forward_body`"
        )


class Choice(Struct, frozen=True):
    """A request's plan, and the candidate that serves it."""

    client: Client
    protocol: ApiProtocol | None  # None: the request is neither routed nor observed
    queries: Sequence[Query]
    plan: Plan | None  # None: the request was not classified
    selection: Selection | None  # None: the request is rejected
    timings_ms: Mapping[str, float]

    def release(self) -> None:
        """Release the lease."""
        if self.selection is not None:
            self.selection.release()


def kind_of(router: Router, serving: Serving, exchange: Exchange) -> Kind:
    """Return how the middleware serves a request."""
    route, model = exchange.route, exchange.model
    if route is not None and exchange.is_object:
        if router.routes(model, serving.served_names):
            return "routed"
        if not route.dry_run and (router.observe_only or serving.recorder.records_all_requests):
            return "observed"
    if not model:
        return "forwarded"
    if model in router.auto_names:
        return "unrouted"
    return "forwarded" if serving.adapters is None or model in serving.served_names else "named"


async def choose(router: Router, serving: Serving, exchange: Exchange) -> Choice:
    """Plan a request, and lease the first candidate that can serve it.

    A request that names its model is a plan with one candidate, no fallback to another adapter and no deadline.
    """
    route, members, is_routed = exchange.route, exchange.members, exchange.kind == "routed"
    client = await exchange.run(lambda: client_of(router, exchange.scope, members))
    protocol: ApiProtocol | None = None
    queries: Sequence[Query] = ()
    plan: Plan | None = None
    timings_ms: dict[str, float] = {}
    started = planned = time.perf_counter()
    if route is not None and exchange.kind != "named":
        protocol = route.protocol_for(members)
        if is_routed or router.observe_only:
            queries, plan = await plan_of(router, exchange, protocol, client)
    if is_routed and plan is not None:
        planned = time.perf_counter()
        timings_ms["plan"] = (planned - started) * 1000
        if router.rejects_on_error and plan.reason in FAILURES and not router.observe_only:
            return Choice(client, protocol, queries, plan, None, timings_ms)
        target = routed_target(router, plan, client.tenant, exchange.path, exchange.access)
    else:
        target = named_target(exchange, serving, client.tenant, "named" if plan is None else "observe")
    selection = await (preview if exchange.is_dry_run else lease_first)(target, serving.adapters)
    # Await nothing from here on: if the request were cancelled meanwhile, its lease would never be released.
    if is_routed:
        timings_ms["lease"] = (time.perf_counter() - planned) * 1000
    return Choice(client, protocol, queries, plan, selection, timings_ms)


def named_target(exchange: Exchange, serving: Serving, tenant: str | None, reason: Reason) -> Target:
    """Return the target of a request that names its model.

    If the name is not an adapter that can be leased, vLLM receives the request unchanged. It knows the name, or it
    answers 404.
    """
    model = exchange.model or serving.served_names[0]
    source = "named by the client"
    candidates = (Candidate(model, None, source=source),)
    if exchange.model and serving.adapters is not None:
        candidates = (Candidate(model, model, source=source), *candidates)
    return Target(candidates, reason, tenant, exchange.path, exchange.access, has_fixed_reason=True, by_client=True)


async def plan_of(
    router: Router, exchange: Exchange, protocol: ApiProtocol, client: Client
) -> tuple[Sequence[Query], Plan]:
    """Return a request's queries and their plan. Errors lead to the fallback plan: routing never fails a request."""
    queries: Sequence[Query] = ()
    try:
        members = exchange.members
        queries = await exchange.run(lambda: protocol.read(members))
        may_call_tools = exchange.access == "full" and not exchange.is_dry_run
        return queries, await router.plan(queries, client, model=exchange.model, may_call_tools=may_call_tools)
    except Exception:
        logger.exception("request to %s: routing failed; falling back to default_model", exchange.path)
        return queries, router.fallback("error")


def edit(
    router: Router, exchange: Exchange, choice: Choice, selection: Selection, send: Send
) -> Response | RoutedResponse | None:
    """Write the selected model, and for a routed request the candidate's edit, into the request.

    Returns:
        The response that tracks the decision; None for a request that is neither routed nor observed.
    """
    lease = selection.lease
    if exchange.kind == "routed":
        decision, retry = _write_edit(exchange, choice, selection)
    else:
        if lease is not None and selection.model != exchange.model:
            exchange.set_model(selection.model)
        if exchange.kind == "named":
            return None
        decision, retry = _observed_decision(router, exchange, choice, selection), None
    if choice.plan is None or exchange.access == "no_key":
        return Response(decision, send)
    is_browser = asgi.header(exchange.scope, b"origin") is not None
    return RoutedResponse(decision, send, retry, is_browser=is_browser)


def _write_edit(exchange: Exchange, choice: Choice, selection: Selection) -> tuple[Decision, Retry | None]:
    started = time.perf_counter()
    candidate, protocol, plan = selection.candidate, choice.protocol, choice.plan
    assert protocol is not None and plan is not None
    model_only = dict(exchange.members)
    request_id, answer_id = protocol.assign_id(model_only, exchange.request_id, new_id())
    model_only["model"] = json_edit.encode(selection.model)
    edited = dict(model_only)
    try:
        edits = Edit(selection.model, candidate.system_prompt, candidate.system_prompt_mode, candidate.reasoning)
        # Requests without the API key must not reveal a system prompt, for example by its tokens.
        applied = AppliedEdit() if exchange.access == "no_key" else protocol.write(edited, edits)
    except Exception:
        logger.exception("request to %s: the edit failed; only the model is changed", exchange.path)
        edited, applied = model_only, AppliedEdit()
    exchange.set_model_header(selection.model)
    exchange.write(json_edit.join_members(edited), {} if request_id is None else {b"x-request-id": request_id.encode()})
    timings_ms = {**choice.timings_ms, "edit": (time.perf_counter() - started) * 1000}
    decision = _decision(exchange, choice, selection, protocol, plan, answer_id, applied, timings_ms)

    def retry() -> tuple[Decision, bytes]:
        return replace(decision, applied=AppliedEdit()), json_edit.join_members(model_only)

    return decision, retry if applied.more_than_model else None


def rejected_decision(exchange: Exchange, choice: Choice) -> Decision:
    """Return the decision of a request that `router.on_error: reject` refuses."""
    plan, protocol = choice.plan, choice.protocol
    assert plan is not None and protocol is not None
    request_id = exchange.request_id
    if request_id is None or not is_usable_id(request_id):
        request_id = new_id()
    fallback = Selection(plan.candidates[0], plan.reason, plan.candidates[0].model)
    answer_id = protocol.id_prefix + request_id
    decision = _decision(exchange, choice, fallback, protocol, plan, answer_id, AppliedEdit(), choice.timings_ms)
    return replace(decision, is_rejected=True)


def _observed_decision(router: Router, exchange: Exchange, choice: Choice, selection: Selection) -> Decision:
    """Return the decision of a request that names its model, and give the request an X-Request-Id."""
    assert choice.protocol is not None
    request_id = exchange.request_id
    if request_id is None or not is_usable_id(request_id):
        request_id = new_id()
        exchange.add_headers({b"x-request-id": request_id.encode()})
    plan = choice.plan or Plan((), "named", None, None, None, (selection.candidate,), router.version)
    answer_id = choice.protocol.id_prefix + request_id
    return _decision(exchange, choice, selection, choice.protocol, plan, answer_id, AppliedEdit(), {})


def _decision(
    exchange: Exchange,
    choice: Choice,
    selection: Selection,
    protocol: ApiProtocol,
    plan: Plan,
    answer_id: str,
    applied: AppliedEdit,
    timings_ms: Mapping[str, float],
) -> Decision:
    version = None if selection.lease is None else selection.lease.version
    prompts = max(len(choice.queries), 1)
    return Decision(
        id=answer_id,
        plan=plan,
        candidate=selection.candidate,
        reason=selection.reason,
        applied=applied,
        overhead_ms=(time.perf_counter() - exchange.began_s) * 1000,
        version=None if version is None else version.engine_name,
        skipped=selection.skipped,
        content_digest=None if version is None else version.digest,
        request=RequestInfo(
            exchange.path,
            protocol.api,
            exchange.model,
            choice.client.tenant,
            choice.client.api_key_fingerprint,
            prompts,
        ),
        timings_ms=timings_ms,
    )
