"""The `/v1/router` routes. They are under `/v1`, so vLLM's API key guards them."""

import asyncio
import dataclasses
import os
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
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
from vllm_lora_router.observability.recorder import MAX_RECENT_DECISIONS, UnknownDecisionError
from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Members
from vllm_lora_router.protocols.routes import detect_protocol
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server import admin_key
from vllm_lora_router.server.admin_key import AdminKeyError, TooManyWrongKeysError
from vllm_lora_router.server.client import client_of
from vllm_lora_router.server.errors import error_body
from vllm_lora_router.server.exchange import LARGE_BYTES
from vllm_lora_router.server.leasing import preview, routed_target
from vllm_lora_router.server.schemas.adapters import AdaptersResponse
from vllm_lora_router.server.schemas.common import VALIDATION_ERROR, error_response
from vllm_lora_router.server.schemas.decisions import DecisionsResponse
from vllm_lora_router.server.schemas.plan import CLASSIFY_REQUEST_BODY, PlanResponse, PlanSummary
from vllm_lora_router.server.schemas.status import (
    ConfigResponse,
    ConfigSummary,
    FeedbackRequest,
    FeedbackResponse,
    HealthResponse,
    HealthSummary,
    ReloadRefusedResponse,
    ReloadResponse,
)
from vllm_lora_router.server.state import Serving
from vllm_lora_router.types import Query as ClassifierQuery

ADMIN_HEADER = admin_key.HEADER
MAX_INPUT_CHARACTERS = 200  # of an invalid value that an error shows


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
                details = [{**detail, "input": _shown_input(detail["input"])} for detail in error.errors()]
                return _json({"detail": jsonable_encoder(details)}, 422)
            except ApiError as error:
                return _json(error_body(request.url.path, error.status, error.message), error.status)

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


SentAdminKey = Annotated[str | None, Security(_admin_key_header)]


async def _require_admin_key(
    request: Request, router: ActiveRouter, serving: CurrentServing, key: SentAdminKey
) -> None:
    address = request.client.host if request.client is not None else "unknown"
    try:
        serving.admin_keys.check(router.loaded.config.router.admin_key_env, key, address)
    except AdminKeyError as error:
        raise ApiError(403, str(error)) from None
    except TooManyWrongKeysError as error:
        raise ApiError(429, str(error)) from None


async def _is_admin(request: Request, router: ActiveRouter, serving: CurrentServing, key: SentAdminKey) -> bool:
    """Return whether the request has the admin key. A wrong key is refused, never ignored."""
    if key is None:
        return False
    await _require_admin_key(request, router, serving, key)
    return True


IsAdmin = Annotated[bool, Depends(_is_admin)]


async def _require_json(request: Request, router: ActiveRouter) -> None:
    # A web page of another origin can post without asking the server first, but not with this content type.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, f"the content type is {media_type or 'missing'!r}; send content-type: application/json")


api = APIRouter(
    prefix="/v1/router",
    tags=["LoRA router"],
    route_class=RouterRoute,
    responses={503: error_response("The router has not started yet.")},
)
_ADMIN_ONLY = [Depends(_require_admin_key)]
_FORBIDDEN = error_response(f"The header `{ADMIN_HEADER}` is missing or wrong, or no admin key is configured.")
_WRONG_KEY = error_response(f"The header `{ADMIN_HEADER}` is wrong, or no admin key is configured.")
_TOO_MANY_KEYS = error_response("The address has sent too many wrong admin keys.")
_ADMIN_ERRORS: dict[int | str, dict[str, Any]] = {403: _FORBIDDEN, 429: _TOO_MANY_KEYS}
_OPTIONAL_ADMIN_ERRORS: dict[int | str, dict[str, Any]] = {403: _WRONG_KEY, 429: _TOO_MANY_KEYS}
_NOT_JSON = error_response("The content type is not `application/json`.")
_OPTIONAL_ADMIN_KEY = {"security": [{}]}  # the document then requires the admin key or nothing


def include_routes(app: FastAPI, serving: Serving) -> None:
    """Add the routes to `app`. Each request reads what `serving` holds at that time."""
    app.state.lora_router = serving
    app.include_router(api)


@api.post(
    "/classify",
    summary="Plan a request without running it",
    response_model=PlanResponse | PlanSummary,
    responses={415: _NOT_JSON, 422: VALIDATION_ERROR, **_OPTIONAL_ADMIN_ERRORS},
    dependencies=[Depends(_require_json)],
    openapi_extra={"requestBody": CLASSIFY_REQUEST_BODY, **_OPTIONAL_ADMIN_KEY},
)
async def classify(request: Request, router: ActiveRouter, serving: CurrentServing, is_admin: IsAdmin) -> Response:
    """Return the routing plan for `{"text": ...}` or for a whole request body.

    The answer contains the scores of each method, all candidates, and the model that would serve the request now. With
    the admin key it also contains the evidence, the system prompts, the A/B assignment and the conversation's state.
    Nothing is generated, no adapter is loaded, no MCP tool is called, and the request is not counted.
    """
    body = await request.body()
    is_large = len(body) > LARGE_BYTES
    members, queries = await asyncio.to_thread(_read_queries, body) if is_large else _read_queries(body)
    client = client_of(router, request.scope, members)
    plan = await router.plan(queries, client, model=json_edit.string_value(members.get("model")), may_call_tools=False)
    selection = await preview(routed_target(router, plan, client.tenant, request.scope["path"]), serving.adapters)
    selection.release()
    content = {**msgspec.to_builtins(plan), "model": selection.candidate.model, "reason": selection.reason}
    return _json(content if is_admin else PlanSummary.select(content))


@api.get(
    "/health",
    summary="Show the state of this API-server process",
    response_model=HealthResponse | HealthSummary,
    responses={
        503: {
            "model": HealthResponse | HealthSummary,
            "description": "The server is shutting down, or has not started yet.",
        },
        **_OPTIONAL_ADMIN_ERRORS,
    },
    openapi_extra=_OPTIONAL_ADMIN_KEY,
)
async def health(router: ActiveRouter, serving: CurrentServing, is_admin: IsAdmin) -> Response:
    """Return the version in effect, whether a newer configuration was refused, the state of each method, and this
    process's decisions by reason. While the server shuts down, the status is 503.

    With the admin key, the answer also contains the processes, the problems of the refused configuration, why adapters
    cannot be loaded now, and counts of models, tools, caches and audit lines.
    """
    recorder, cache = serving.recorder, router.classifiers.cache
    counts = recorder.counts
    content = {
        "status": "draining" if serving.drain.is_draining else "ok",
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
        "adapters": serving.adapters.health() if serving.adapters is not None else None,
    }
    return _json(content if is_admin else HealthSummary.select(content), 503 if serving.drain.is_draining else 200)


@api.get(
    "/config",
    summary="Show the configuration in effect",
    response_model=ConfigResponse | ConfigSummary,
    responses=_OPTIONAL_ADMIN_ERRORS,
    openapi_extra=_OPTIONAL_ADMIN_KEY,
)
async def config(router: ActiveRouter, serving: CurrentServing, is_admin: IsAdmin) -> Response:
    """Return the version in effect, the categories, the methods, and the deadline for classification.

    With the admin key the answer also contains the base model, the category of each label of the domain model, and the
    configuration with all defaults. Secrets are replaced by `***`.
    """
    content = {
        "version": router.version,
        "categories": [category.name for category in router.loaded.config.categories],
        "methods": configured_methods(router.loaded.config),
        "deadline_ms": router.classifiers.cascade.deadline_ms,
        "base": {"alias": router.base.alias, "served_names": list(serving.served_names)},
        "labels": msgspec.to_builtins(router.classifiers.label_mapping),
        "config": redact(router.loaded.config),
    }
    return _json(content if is_admin else ConfigSummary.select(content))


@api.post(
    "/feedback",
    summary="Score an answer",
    response_model=FeedbackResponse,
    responses={
        202: {
            "model": FeedbackResponse,
            "description": "This process does not know the answer. The audit record contains the feedback.",
        },
        404: error_response("This process does not know the answer, and there is no audit record to find it in."),
        415: _NOT_JSON,
        422: VALIDATION_ERROR,
        **_OPTIONAL_ADMIN_ERRORS,
    },
    dependencies=[Depends(_require_json)],
    openapi_extra={
        **_OPTIONAL_ADMIN_KEY,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": FeedbackRequest.model_json_schema()}},
        },
    },
)
async def feedback(request: Request, router: ActiveRouter, serving: CurrentServing, is_admin: IsAdmin) -> Response:
    """Join a user's score to the decision behind an answer to the same API key and tenant.

    With the admin key, answers to all clients can be scored.

    If the decision is not among the recent ones of this process, the status is 202 with `router.audit.path` set: the
    audit record joins the feedback to the decision of another process, or of this one before a restart. Otherwise it is
    404.
    """
    try:
        score = FeedbackRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise _body_errors(error) from None
    scale = router.loaded.config.router.feedback
    if not scale.min <= score.score <= scale.max:
        message = f"The score must be between {scale.min:g} and {scale.max:g} (router.feedback)"
        raise _body_error("value_error", message, "score", value=score.score)
    client = None if is_admin else client_of(router, request.scope, {})
    try:
        decision = serving.recorder.record_feedback(score.id, score.score, score.comment, client)
    except UnknownDecisionError:
        raise ApiError(
            404,
            f"this process knows no answer {score.id!r} to this API key and tenant; set router.audit.path to accept "
            "feedback on answers of other processes",
        ) from None
    plan = decision.plan if decision is not None else None
    assignment = plan.assignment if plan is not None else None
    return _json(
        {
            "id": score.id,
            "joined": decision is not None,
            "category": plan.category if plan is not None else None,
            "arm": assignment.arm if assignment is not None else None,
        },
        200 if decision is not None else 202,
    )


@api.get(
    "/decisions",
    summary="List the most recent decisions",
    response_model=DecisionsResponse,
    responses=_ADMIN_ERRORS,
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
    responses=_ADMIN_ERRORS,
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
        **_ADMIN_ERRORS,
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
    return _json({**content, **error_body(api.prefix, 409, message)}, 409)


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


def _shown_input(value: Any) -> Any:
    """Return an invalid value if it is short and can be encoded as JSON, else the name of its type in brackets."""
    is_short = (
        len(value) <= MAX_INPUT_CHARACTERS
        if isinstance(value, str)
        else value is None or (isinstance(value, int | float) and abs(value) < 2**63)
    )
    if not is_short:
        return f"<{type(value).__name__}>"
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


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
        if (failure := classifiers.cascade.last_failures.get(method)) is not None:
            at = datetime.fromtimestamp(failure.at, UTC).isoformat(timespec="seconds")
            method_status["last_failure"] = {"reason": failure.reason, "error": failure.error, "at": at}
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


def _json(content: Any, status: int = 200) -> Response:
    # Encoding here is several times faster than FastAPI's validation and `json.dumps` for large answers.
    return Response(msgspec.json.encode(content), status, media_type="application/json")
