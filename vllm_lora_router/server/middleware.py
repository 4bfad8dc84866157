"""The middleware: read a request, plan it, lease its adapter, edit it, forward it to vLLM, and record the response."""

from contextlib import AbstractContextManager, ExitStack, nullcontext

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_lora_router.adapters.runtime.lease import AdapterUnavailableError
from vllm_lora_router.observability.decision_log import log_retry_without_edit
from vllm_lora_router.observability.traces import RequestSpan
from vllm_lora_router.protocols import cache_salt
from vllm_lora_router.protocols.routes import OPEN_PATHS
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import asgi, tenant_isolation
from vllm_lora_router.server.exchange import Choice, Exchange, choose, edit, kind_of, rejected_decision
from vllm_lora_router.server.guard import Access, access_of, unauthorized_response
from vllm_lora_router.server.model_list import send_with_names
from vllm_lora_router.server.response import Response, RoutedResponse, unavailable_response, unrouted_error
from vllm_lora_router.server.state import Serving
from vllm_lora_router.server.tenants import TenantRefusedError, with_tenant
from vllm_lora_router.types import Decision, Plan

NO_GUARD = nullcontext()


class LoraRouterMiddleware:
    """Routes requests with an auto name as `model`, and leases the adapter for requests that name an adapter.

    All other requests reach the application byte for byte, except for `cache_salt` if tenants are isolated.
    """

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self.serving = serving
        self._fair_resume = asgi.FairResume()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        router = self.serving.router
        if scope["type"] != "http" or router is None:
            if scope["type"] == "websocket" and router is not None and router.isolates_tenants:
                await tenant_isolation.refuse_websocket(scope, receive, send)
                return
            await self.app(scope, receive, send)
            return
        path, method = asgi.path_of(scope), scope["method"]
        if method != "POST" and not path.startswith(("/v1/models", "/v1/router/")):
            if path.startswith("/metrics"):
                self.serving.recorder.flush()
            await self.app(scope, receive, send)
            return
        access = access_of(self.serving.api_keys, scope, path)
        try:
            scope = with_tenant(scope, router.tenant_header, self.serving.tenant_keys, access)
        except TenantRefusedError as error:
            await error.response(path)(scope, receive, send)
            return
        if method == "POST" and not path.startswith("/v1/router/"):
            await self._post(router, path, access, scope, receive, send)
        elif method == "GET" and path == "/v1/models":
            await self._list_models(router, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _list_models(self, router: Router, scope: Scope, receive: Receive, send: Send) -> None:
        adapters, tenant = self.serving.adapters, asgi.text_header(scope, router.tenant_header)
        names = await adapters.names(tenant) if adapters is not None else ()
        is_hidden = adapters.owns if adapters is not None else lambda name: False
        await self.app(scope, receive, send_with_names([router.loaded.config.auto_model_name, *names], is_hidden, send))

    async def _post(
        self, router: Router, path: str, access: Access, scope: Scope, receive: Receive, send: Send
    ) -> None:
        is_guarded = access == "no_key" and router.guards_open_paths
        if is_guarded and path in OPEN_PATHS:
            await unauthorized_response()(scope, receive, send)
            return
        is_isolated = router.isolates_tenants and not cache_salt.runs_no_prompt(path)
        if is_isolated and (refusal := tenant_isolation.refusal(scope, path)) is not None:
            await refusal(scope, receive, send)
            return
        if not asgi.is_json(scope):
            await self._forward_unread(path, scope, receive, send)
            return
        exchange = await Exchange.read(scope, path, receive, access)
        if exchange is None:
            return  # the client disconnected
        exchange.kind = kind_of(router, self.serving, exchange)
        if is_guarded and exchange.kind == "named":
            await unauthorized_response()(scope, receive, send)
            return
        if is_isolated:
            is_salted = await exchange.run(lambda: tenant_isolation.add_salt(exchange, router.tenant_header))
            if is_salted and exchange.kind != "routed":
                await exchange.run(exchange.rewrite)
        if exchange.kind == "forwarded":
            await self.app(exchange.scope, exchange.forward_body(receive), send)
        elif exchange.kind == "unrouted":
            replaced = unrouted_error(exchange.model, path, send)
            await self.app(exchange.scope, exchange.forward_body(receive), replaced)
        else:
            await self._serve(router, exchange, receive, send)

    async def _forward_unread(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request whose body is not read here. It may use any adapter once its body is complete.

        Until then, a client that sends its body slowly must not keep superseded versions.
        """
        if cache_salt.runs_no_prompt(path):
            await self.app(scope, receive, send)
            return
        with ExitStack() as running:
            receive = asgi.call_after_body(receive, lambda: running.enter_context(self._track_unknown_use()))
            await self.app(scope, receive, send)

    async def _serve(self, router: Router, exchange: Exchange, receive: Receive, send: Send) -> None:
        """Serve a request that is routed, observed or named: plan, lease, edit, forward and record it."""
        listener = asgi.DisconnectListener(receive)
        choice: Choice | None = None
        response: Response | RoutedResponse | None = None
        span: RequestSpan | None = None
        try:
            choice = await listener.run(choose(router, self.serving, exchange))
            if choice is None:
                return  # the client disconnected
            if listener.has_waited and exchange.kind == "routed":
                await self._fair_resume.wait()
            if (selection := choice.selection) is None:
                response = Response(rejected_decision(exchange, choice), send)
                if not exchange.is_dry_run:
                    span = self._record(router, exchange, choice, response.decision)
                await _rejection(exchange, choice.plan)(exchange.scope, receive, response.send)
                return
            lease = selection.lease
            if lease is not None and exchange.runs_in_background:
                send = asgi.on_success(send, lease.pin)
            if exchange.kind == "routed" or (lease is not None and lease.model != exchange.model):
                response = await exchange.run(lambda: edit(router, exchange, choice, selection, send))
            else:
                response = edit(router, exchange, choice, selection, send)  # changes no byte of the body
            if response is not None and not exchange.is_dry_run:
                span = self._record(router, exchange, choice, response.decision)
            if response is not None:
                send = response.send
            is_known = exchange.kind == "routed" or lease is not None or cache_salt.runs_no_prompt(exchange.path)
            with NO_GUARD if is_known else self._track_unknown_use():
                await asgi.deferred_start(self.app, exchange.scope, exchange.forward_body(listener.receive), send)
                if isinstance(response, RoutedResponse) and response.is_rejected:
                    await self._retry(exchange, response, listener.receive)
        except AdapterUnavailableError as error:
            message = f"adapter {exchange.model!r} cannot be loaded now: {error}"
            await unavailable_response(exchange.path, message)(exchange.scope, receive, send)
        finally:
            listener.close()
            if choice is not None:
                choice.release()
            if response is not None and not exchange.is_dry_run:
                self.serving.recorder.record_outcome(response.outcome(), span)

    async def _retry(self, exchange: Exchange, response: RoutedResponse, receive: Receive) -> None:
        """Forward a request a second time, without system prompt and reasoning.

        Our edit must not fail a valid request: the edited prompt may be too long, or the chat template may have no
        system role.
        """
        self.serving.recorder.flush()  # the decision is logged before the retry
        exchange.write(response.retry_body())
        log_retry_without_edit(response.decision)
        await asgi.deferred_start(self.app, exchange.scope, exchange.forward_body(receive), response.send)

    def _record(self, router: Router, exchange: Exchange, choice: Choice, decision: Decision) -> RequestSpan | None:
        """Record a decision, and return the request's span if traces are sent."""
        span = self.serving.recorder.start_span(decision, exchange)
        if span is not None:
            exchange.add_headers(span.headers)
        queries, plan = choice.queries, choice.plan
        is_served = exchange.kind == "routed" and not decision.is_rejected
        if is_served and decision.request.api == "responses" and queries and plan is not None:
            router.remember(decision.id, queries, choice.client, plan)
        logs_decision = router.logs_decisions and plan is not None
        self.serving.recorder.record_decision(decision, [query.text for query in queries], log=logs_decision)
        return span

    def _track_unknown_use(self) -> AbstractContextManager[None]:
        """Mark that a request with unknown adapters is running, so that no version is retired.

        This includes requests that name a model without a lease: vLLM also registers each version under the version's
        own name. Answers carry that name, so a client may send it.
        """
        adapters = self.serving.adapters
        return NO_GUARD if adapters is None else adapters.track_unknown_use()


def _rejection(exchange: Exchange, plan: Plan | None) -> JSONResponse:
    """Return the 503 for `router.on_error: reject`."""
    assert plan is not None
    step = next((step for step in plan.steps if step.failure == plan.reason), None)
    cause = f"{step.method} classifier: {plan.reason}" if step else plan.reason
    message = (
        f"the request was not routed ({cause}), and router.on_error is reject; retry, or set `model` to the name of a "
        "model or adapter"
    )
    headers = {} if exchange.access == "no_key" else {"x-lora-router-reason": plan.reason}
    return unavailable_response(exchange.path, message, headers)
