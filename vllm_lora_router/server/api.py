"""The `/v1/router` routes. They are under `/v1`, so vLLM's API key guards them."""

import dataclasses
import os
import secrets
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, Security
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from pydantic import ValidationError

import vllm_lora_router
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.config.methods import configured_methods
from vllm_lora_router.config.redact import redact
from vllm_lora_router.observability.recorder import MAX_RECENT_DECISIONS
from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Members
from vllm_lora_router.protocols.routes import detect_protocol
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.client import client_of
from vllm_lora_router.server.leasing import preview, routed_target
from vllm_lora_router.server.schemas.adapters import AdaptersResponse
from vllm_lora_router.server.schemas.common import VALIDATION_ERROR, error_response
from vllm_lora_router.server.schemas.decisions import DecisionsResponse
from vllm_lora_router.server.schemas.plan import CLASSIFY_REQUEST_BODY, PlanResponse
from vllm_lora_router.server.schemas.status import (
    ConfigResponse,
    FeedbackRequest,
    FeedbackResponse,
    HealthResponse,
    ReloadRefusedResponse,
    ReloadResponse,
)
from vllm_lora_router.server.state import Serving
from vllm_lora_router.types import Query as ClassifierQuery

ADMIN_HEADER = "x-lora-router-admin-key"

_ERROR_TYPES = {
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    503: "ServiceUnavailableError",
}


class ApiError(Exception):
    """An error answer in the form that OpenAI clients expect."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(message)


class RouterRoute(APIRoute):
    """A route that answers its own errors, independently of the app's exception handlers.

    Invalid requests get FastAPI's standard 422. vLLM's app would answer them with a 400 in OpenAI's form.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                return _json({"detail": jsonable_encoder(error.errors())}, 422)
            except ApiError as error:
                return _json({"error": _error_body(error.status, error.message)}, error.status)

        return handle


async def _serving(request: Request) -> Serving:
    return request.app.state.lora_router


CurrentServing = Annotated[Serving, Depends(_serving)]


async def _active_router(serving: CurrentServing) -> Router:
    if serving.router is None:
        raise ApiError(503, "the router has not started yet; try again when /health returns 200")
    return serving.router


ActiveRouter = Annotated[Router, Depends(_active_router)]

_admin_key_header = APIKeyHeader(
    name=ADMIN_HEADER,
    scheme_name="LoraRouterAdminKey",
    description="The value of the environment variable that `router.admin_key_env` names.",
    auto_error=False,  # a missing key is answered with 403, like a wrong one
)


async def _require_admin_key(router: ActiveRouter, key: Annotated[str | None, Security(_admin_key_header)]) -> None:
    variable = router.loaded.config.router.admin_key_env
    expected = os.environ.get(variable, "") if variable else ""
    if not expected:
        cause = f"the environment variable {variable} is empty" if variable else "router.admin_key_env is not set"
        raise ApiError(403, f"this route needs an admin key, and {cause}")
    if not secrets.compare_digest((key or "").encode(), expected.encode()):
        raise ApiError(403, f"this route needs the admin key in the header {ADMIN_HEADER}")


api = APIRouter(
    prefix="/v1/router",
    tags=["LoRA router"],
    route_class=RouterRoute,
    responses={503: error_response("The router has not started yet.")},
)
_ADMIN_ONLY = [Depends(_require_admin_key)]
_FORBIDDEN = error_response(f"The header `{ADMIN_HEADER}` is missing or wrong, or no admin key is configured.")


def include_routes(app: FastAPI, serving: Serving) -> None:
    """Add the routes to `app`. Each request reads what `serving` holds at that time."""
    app.state.lora_router = serving
    app.include_router(api)


@api.post(
    "/classify",
    summary="Plan a request without running it",
    response_model=PlanResponse,
    responses={422: VALIDATION_ERROR},
    openapi_extra={"requestBody": CLASSIFY_REQUEST_BODY},
)
async def classify(request: Request, router: ActiveRouter, serving: CurrentServing) -> Response:
    """Return the routing plan for `{"text": ...}` or for a whole request body.

    The answer contains the scores and evidence of each method, all candidates, and the model that would serve the
    request now. Nothing is generated, no adapter is loaded, no MCP tool is called, and the request is not counted.
    """
    members, queries = _read_queries(await request.body())
    client = client_of(router, request.scope, members)
    plan = await router.plan(queries, client, model=json_edit.string_value(members.get("model")), may_call_tools=False)
    selection = await preview(routed_target(router, plan, client.tenant, request.scope["path"]), serving.adapters)
    selection.release()
    return _json({**msgspec.to_builtins(plan), "model": selection.candidate.model, "reason": selection.reason})


@api.get("/health", summary="Show the state of this API-server process", response_model=HealthResponse)
async def health(router: ActiveRouter, serving: CurrentServing) -> Response:
    """Return the configuration in effect in each process, the last configuration that was refused, the state of each
    method, and this process's decisions by reason.
    """
    recorder, cache = serving.recorder, router.classifiers.cache
    counts = recorder.counts
    return _json(
        {
            "status": "ok",
            "version": vllm_lora_router.__version__,
            "process": os.getpid(),
            "config": {"version": router.version, **(serving.reloader.status() if serving.reloader else {})},
            "methods": _method_status(router.classifiers),
            "cache": {
                "entries": len(cache),
                "bytes": cache.used_bytes,
                "hits": cache.hits,
                "misses": cache.misses,
            },
            "decisions": dict(counts.by_reason),
            "in_progress": counts.in_progress,
            "aborted": counts.aborted,
            "failed": counts.failed,
            "audit": recorder.audit_status(),
        }
    )


@api.get("/config", summary="Show the configuration in effect", response_model=ConfigResponse)
async def config(router: ActiveRouter, serving: CurrentServing) -> Response:
    """Return the configuration in effect with all defaults, the base model, the deadline for classification, and the
    category of each label of the domain model. Secrets are replaced by `***`.
    """
    return _json(
        {
            "version": router.version,
            "base": {"alias": router.base.alias, "served_names": list(serving.served_names)},
            "methods": configured_methods(router.loaded.config),
            "deadline_ms": router.classifiers.cascade.deadline_ms,
            "labels": msgspec.to_builtins(router.classifiers.label_mapping),
            "config": redact(router.loaded.config),
        }
    )


@api.post(
    "/feedback",
    summary="Score an answer",
    response_model=FeedbackResponse,
    responses={
        404: error_response("This process does not know the answer, and there is no audit record to find it in."),
        422: VALIDATION_ERROR,
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": FeedbackRequest.model_json_schema()}},
        }
    },
)
async def feedback(request: Request, router: ActiveRouter, serving: CurrentServing) -> Response:
    """Join a user's score to the decision behind an answer.

    With `router.audit.path` set, feedback is accepted in any API-server process, and the audit record joins it to the
    decision. Otherwise the decision must be among the recent ones of this process.
    """
    try:
        score = FeedbackRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise _body_errors(error) from None
    decision = serving.recorder.record_feedback(score.id, score.score, score.comment)
    if decision is None and not serving.recorder.has_audit_record:
        raise ApiError(
            404, f"this process knows no answer {score.id!r}; set router.audit.path to accept feedback on any answer"
        )
    plan = decision.plan if decision is not None else None
    assignment = plan.assignment if plan is not None else None
    return _json(
        {
            "id": score.id,
            "category": plan.category if plan is not None else None,
            "arm": assignment.arm if assignment is not None else None,
        }
    )


@api.get(
    "/decisions",
    summary="List the most recent decisions",
    response_model=DecisionsResponse,
    responses={403: _FORBIDDEN},
    dependencies=_ADMIN_ONLY,
)
async def decisions(
    serving: CurrentServing,
    limit: Annotated[
        int, Query(ge=1, le=MAX_RECENT_DECISIONS, description="The maximum number of decisions to return.")
    ] = 100,
) -> Response:
    """Return this process's most recent decisions, newest first, with everything that the audit record contains except
    user text.
    """
    return _json({"process": os.getpid(), "decisions": serving.recorder.recent_decisions(limit)})


@api.get(
    "/adapters",
    summary="List the adapters",
    response_model=AdaptersResponse,
    responses={403: _FORBIDDEN},
    dependencies=_ADMIN_ONLY,
)
async def adapters(serving: CurrentServing) -> Response:
    """Return every adapter with its source, version and state, and its size on disk, in memory and in a slot. For
    comparison, the answer contains the memory that one full model per adapter would need.
    """
    return _json(await serving.adapters.report() if serving.adapters is not None else {"adapters": []})


@api.post(
    "/reload",
    summary="Reload the configuration file",
    response_model=ReloadResponse,
    responses={
        403: _FORBIDDEN,
        409: {"model": ReloadRefusedResponse, "description": "The new configuration is refused."},
    },
    dependencies=_ADMIN_ONLY,
)
async def reload(serving: CurrentServing) -> Response:
    """Read the configuration file now, and wait until the outcome is the same in all API-server processes.

    A refused configuration changes nothing: the previous one stays in effect in all processes.
    """
    if serving.reloader is None:
        raise ApiError(503, "this server does not watch its configuration file")
    result = await serving.reloader.reload()
    content = dataclasses.asdict(result)
    if result.outcome != "refused":
        return _json(content)
    message = "the configuration is refused: " + "; ".join(result.problems)
    return _json({**content, "error": _error_body(409, message)}, 409)


def _read_queries(body: bytes) -> tuple[Members, tuple[ClassifierQuery, ...]]:
    """Return the members and the queries of a `POST /v1/router/classify` body.

    Raises:
        RequestValidationError: the body is not an object, cannot be read, or contains no user text.
    """
    try:
        members = json_edit.body_members(body)
    except json_edit.NotAnObjectError as error:
        raise _body_error("json_invalid", f"The body must be a JSON object: {error}") from None
    try:
        if "text" in members:
            text = json_edit.decode(members["text"])
            if not isinstance(text, str):
                raise _body_error("string_type", "The text must be a string", "text", value=text)
            return members, (ClassifierQuery(text, (text,)),)
        shape = detect_protocol(members)
        queries = shape.read(members) if shape else None
    except ValueError as error:
        raise _body_error("value_error", f"The body cannot be read: {error}") from None
    if queries is None:
        raise _body_error("missing", 'The body needs "text", or the "messages", "prompt" or "input" of a request')
    return members, queries


def _body_error(kind: str, message: str, *location: str, value: Any = None) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", *location), "msg": message, "input": value}])


def _body_errors(error: ValidationError) -> RequestValidationError:
    # As in FastAPI's own errors: no URL, a location that starts at "body", and no copy of a body that is not JSON.
    return RequestValidationError(
        [
            {**detail, "loc": ("body", *detail["loc"])} | ({"input": None} if detail["type"] == "json_invalid" else {})
            for detail in error.errors(include_url=False)
        ]
    )


def _method_status(classifiers: Classifiers) -> dict[str, Any]:
    """Return what each configured method has done in this process."""
    status: dict[str, Any] = {}
    failures = classifiers.cascade.failures
    for classifier in classifiers.cascade.classifiers:
        method = classifier.method
        method_status: dict[str, Any] = {
            "failures": {reason: count for (failed, reason), count in failures.items() if failed == method}
        }
        if (model_classifier := classifiers.model_classifiers.get(method)) is not None:
            stats, stuck_s = model_classifier.batcher.stats, model_classifier.batcher.worker.stuck_s
            method_status |= {
                "runs_on": model_classifier.runs_on,
                "stuck_s": stuck_s and round(stuck_s),
                "batches": stats.batches,
                "texts": stats.texts,
                "failed": stats.failed,
                "largest": stats.largest,
            }
        if method == "mcp" and classifiers.mcp_tool is not None:
            method_status |= classifiers.mcp_tool.status()
        status[method] = method_status
    return status


def _error_body(status: int, message: str) -> dict[str, Any]:
    return {"message": message, "type": _ERROR_TYPES[status], "param": None, "code": status}


def _json(content: Any, status: int = 200) -> Response:
    # Encoding here is several times faster than FastAPI's validation and `json.dumps` for large answers.
    return Response(msgspec.json.encode(content), status, media_type="application/json")
