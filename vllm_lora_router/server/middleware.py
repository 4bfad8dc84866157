"""The middleware that walks a request's way once: bytes, queries, plan, lease, edit, and on to vLLM."""

from contextlib import nullcontext

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_lora_router.observability.decision_log import log_asked_again
from vllm_lora_router.observability.traces import RequestSpan
from vllm_lora_router.protocols import cache_salt, json_edit
from vllm_lora_router.protocols.protocol import Shape
from vllm_lora_router.protocols.routes import Route
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import asgi, tenant_isolation
from vllm_lora_router.server.client import client_of
from vllm_lora_router.server.engine_first import engine_first
from vllm_lora_router.server.exchange import Considered, Named, consider, consider_named, decision_named, edit
from vllm_lora_router.server.incoming import Incoming
from vllm_lora_router.server.model_list import with_names
from vllm_lora_router.server.response import Response, RoutedResponse, unrouted
from vllm_lora_router.server.state import Adapters, Lease, Serving
from vllm_lora_router.server.turns import Turns
from vllm_lora_router.types import Decision, Plan


class LoraRouterMiddleware:
    """Routes requests whose `model` is an auto name; a request that names an adapter gets a lease on it.

    Every other reaches the application byte for byte, but for `cache_salt` where tenants are kept apart.
    """

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self.serving = serving
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        router = self.serving.router
        if scope["type"] != "http" or router is None:
            if scope["type"] == "websocket" and router is not None and router.isolates:
                await tenant_isolation.refuse_socket(scope, receive, send)
                return
            await self.app(scope, receive, send)
            return
        path, method = asgi.path_of(scope), scope["method"]
        if method == "POST" and not path.startswith("/v1/router/"):
            await self._post(router, path, scope, receive, send)
        elif method == "GET" and path == "/v1/models":
            await self._list_models(router, scope, receive, send)
        else:
            if path.startswith("/metrics"):
                self.serving.record.settle()
            await self.app(scope, receive, send)

    async def _list_models(self, router: Router, scope: Scope, receive: Receive, send: Send) -> None:
        adapters, tenant = self.serving.adapters, asgi.text_header(scope, router.tenant_header)
        names = await adapters.names(tenant) if adapters is not None else ()
        hidden = adapters.owns if adapters is not None else lambda name: False
        await self.app(scope, receive, with_names([router.loaded.config.auto_model_name, *names], hidden, send))

    async def _post(self, router: Router, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        adapters = self.serving.adapters
        isolated = router.isolates and not cache_salt.runs_nothing(path)
        if isolated and (refusal := tenant_isolation.refusal(scope, path)) is not None:
            await refusal(scope, receive, send)
            return
        if not asgi.is_json(scope):
            with adapters.unread() if adapters is not None else nullcontext():
                await self.app(scope, receive, send)
            return
        incoming = await Incoming.read(scope, path, receive)
        if incoming is None:
            return
        route, model = incoming.route, incoming.model
        salted = isolated and await incoming.work(lambda: tenant_isolation.salt_members(incoming, router.tenant_header))
        if route is not None and incoming.members is not None and router.takes(model, self.serving.served_names):
            await self._route(router, route, incoming, receive, send)
            return
        if salted:
            await incoming.work(incoming.rewrite)
        if model is not None and model in router.auto_names:
            await self.app(incoming.scope, incoming.hand_on(receive), unrouted(model, path, send))
        elif self._watches(router, route, incoming) or (
            adapters is not None and model and model not in self.serving.served_names
        ):
            await self._serve_named(router, adapters, incoming, receive, send)
        else:
            await self.app(incoming.scope, incoming.hand_on(receive), send)

    def _watches(self, router: Router, route: Route | None, incoming: Incoming) -> bool:
        """Whether a request that is not routed is looked at all the same."""
        if route is None or route.dry or incoming.members is None:
            return False
        return router.observes or self.serving.record.records_all

    async def _route(self, router: Router, route: Route, incoming: Incoming, receive: Receive, send: Send) -> None:
        shape = route.shape_of(incoming.members or {})
        ahead = asgi.Ahead(receive)
        considered: Considered | None = None
        try:
            work = consider(router, route, shape, incoming, self.serving.adapters)
            considered = await ahead.unless_gone(work)
            if considered is None:
                return
            if ahead.has_waited:  # perhaps for the same as others
                await self._turns.mine()
            if (taken := considered.taken) is None:
                await _rejection(considered.plan)(incoming.scope, receive, send)
                return
            edited = await incoming.work(lambda: edit(shape, incoming, considered, taken))
            if taken.lease is not None and edited.runs_on:
                taken.lease.keep()
            if route.header is not None:
                incoming.name(taken.model)
            added = {} if edited.request_id is None else {b"x-request-id": edited.request_id.encode()}
            incoming.write(edited.content, added)
            browser = asgi.header(incoming.scope, b"origin") is not None
            response = RoutedResponse(edited.decision, send, edited.again, browser=browser)
            del edited  # it holds the client's body
            if route.dry:
                await self._hand_on(response, incoming, ahead.receive)
                return
            span = self._begin(incoming, response.decision)
            self._note(router, response.decision, considered)
            try:
                await self._hand_on(response, incoming, ahead.receive)
            finally:
                self.serving.record.ended(response.outcome(), span)
        finally:
            ahead.close()
            if considered is not None and considered.lease is not None:
                considered.lease.release()

    def _begin(self, incoming: Incoming, decision: Decision) -> RequestSpan | None:
        span = self.serving.record.begin(decision, incoming)
        if span is not None:
            incoming.add_headers(span.headers)
        return span

    def _note(self, router: Router, decision: Decision, considered: Considered) -> None:
        """Hands what was decided to those who keep it."""
        queries = considered.queries
        if decision.request.api == "responses" and queries:
            router.remember(decision.id, queries, considered.client, considered.plan)
        self.serving.record.decided(decision, [query.text for query in queries], say=router.logs_decisions)

    def _seen(
        self, router: Router, shape: Shape, incoming: Incoming, named: Named, send: Send
    ) -> tuple[Response | RoutedResponse, RequestSpan | None]:
        """Records a request that names its model, and says in its response what routing would have done."""
        decision, request_id = decision_named(router, shape, incoming, named, self.serving.served_names[0])
        if request_id is not None:
            incoming.add_headers({b"x-request-id": request_id.encode()})
        span = self._begin(incoming, decision)
        say = router.logs_decisions and named.plan is not None
        self.serving.record.decided(decision, [query.text for query in named.queries], say=say)
        if named.plan is None:
            return Response(decision, send), span
        browser = asgi.header(incoming.scope, b"origin") is not None
        return RoutedResponse(decision, send, None, browser=browser), span

    async def _hand_on(self, response: RoutedResponse, incoming: Incoming, receive: Receive) -> None:
        await engine_first(self.app, incoming.scope, incoming.hand_on(receive), response.send)
        if (content := response.ask_again()) is not None:
            # A good request is never lost to what we wrote: a prompt too long for the model, or a template that knows
            # no system role.
            self.serving.record.settle()  # first things first
            log_asked_again(response.decision)
            incoming.write(content)
            del content
            await engine_first(self.app, incoming.scope, incoming.hand_on(receive), response.send)

    async def _serve_named(
        self, router: Router, adapters: Adapters | None, incoming: Incoming, receive: Receive, send: Send
    ) -> None:
        """A request that names its model itself: it waits for that one, and gets no other."""
        route = incoming.route
        client = client_of(router, incoming.scope, incoming.members or {})
        shape = route.shape_of(incoming.members or {}) if route is not None else None
        watched = shape if self._watches(router, route, incoming) else None
        ahead = asgi.Ahead(receive)
        lease: Lease | None = None
        response: Response | RoutedResponse | None = None
        span: RequestSpan | None = None
        try:
            work = consider_named(router, incoming, adapters, client, watched if router.observes else None)
            named = await ahead.unless_gone(work)
            if named is None:
                return
            lease = named.lease
            if watched is not None:
                response, span = self._seen(router, watched, incoming, named, send)
            if lease is not None and lease.model != incoming.model:
                await incoming.work(lambda: incoming.name(lease.model))
            if lease is not None and incoming.members is not None and json_edit.runs_on(incoming.members):
                lease.keep()
            # A version's own name, which answers carry, stands in vLLM's registry too.
            with adapters.unread() if lease is None and adapters is not None else nullcontext():
                to = send if response is None else response.send
                await engine_first(self.app, incoming.scope, incoming.hand_on(ahead.receive), to)
        finally:
            if response is not None:
                self.serving.record.ended(response.outcome(), span)
            ahead.close()
            if lease is not None:
                lease.release()


def _rejection(plan: Plan) -> JSONResponse:
    step = next((step for step in plan.steps if step.failure == plan.reason), None)
    what = f"the {step.method} classifier: {plan.reason}" if step else plan.reason
    message = f"The request could not be routed ({what}) and router.on_error is reject. Try again, or name a model."
    error = {"message": message, "type": "ServiceUnavailableError", "param": "model", "code": 503}
    return JSONResponse({"error": error}, 503, headers={"x-lora-router-reason": plan.reason})
