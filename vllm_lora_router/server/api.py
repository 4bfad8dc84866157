"""Our own routes, all under /v1/router/ so that vLLM's API key guards them."""

import dataclasses
import json
import math
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import vllm_lora_router
from vllm_lora_router.classifiers.cache import Cache
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.config.redact import masked
from vllm_lora_router.config.warnings import methods_of
from vllm_lora_router.observability.recorder import LATEST
from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.routes import shape_of
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.client import client_of
from vllm_lora_router.server.leasing import foresee
from vllm_lora_router.server.state import Serving
from vllm_lora_router.types import Query

# Beside vLLM's own API key, which goes by `Authorization`.
ADMIN_HEADER = "x-lora-router-admin-key"

Endpoint = Callable[[Router, Serving, Request], Awaitable[Response]]


def routes(serving: Serving) -> list[Route]:
    """The routes over what `serving` holds when a request comes."""

    def route(path: str, method: str, endpoint: Endpoint, *, admin: bool = False) -> Route:
        async def answer(request: Request) -> Response:
            if serving.router is None:
                return _error(503, "the router is not up yet; ask again when /health answers")
            if admin and (refused := _not_admin(serving.router, request)):
                return _error(403, refused)
            return await endpoint(serving.router, serving, request)

        return Route(path, answer, methods=[method])

    return [
        route("/v1/router/classify", "POST", _classify),
        route("/v1/router/health", "GET", _health),
        route("/v1/router/config", "GET", _config),
        route("/v1/router/adapters", "GET", _adapters, admin=True),
        route("/v1/router/reload", "POST", _reload, admin=True),
        route("/v1/router/decisions", "GET", _decisions, admin=True),
        route("/v1/router/feedback", "POST", _feedback),
    ]


async def _health(router: Router, serving: Serving, request: Request) -> Response:
    tally = serving.record.tally
    return JSONResponse(
        {
            "status": "ok",
            "version": vllm_lora_router.__version__,
            "process": os.getpid(),
            "config": {"version": router.version, **(serving.reloading.status() if serving.reloading else {})},
            "methods": _methods(router.classifiers),
            "cache": _cache(router.classifiers.cache),
            "decisions": dict(tally.reasons),
            "under_way": tally.under_way,
            "aborted": tally.aborted,
            "failed": tally.failed,
            "audit": serving.record.status(),
        }
    )


def _methods(classifiers: Classifiers) -> dict[str, Any]:
    """What each method in force has done in this process; a model that does not return is not asked any more."""
    found: dict[str, Any] = {}
    for classifier in classifiers.cascade.classifiers:
        failures = classifiers.cascade.failures
        said: dict[str, Any] = {
            "failures": {why: n for (method, why), n in failures.items() if method == classifier.method}
        }
        if (scored := classifiers.scored.get(classifier.method)) is not None:
            stuck_s = scored.batcher.worker.stuck_s
            said |= {
                "runs_on": scored.runs_on,
                "stuck_s": stuck_s and round(stuck_s),
                **dataclasses.asdict(scored.batcher.done),
            }
        if classifier.method == "mcp" and classifiers.tool is not None:
            said |= classifiers.tool.status()
        found[classifier.method] = said
    return found


def _cache(cache: Cache) -> dict[str, int]:
    return {"entries": len(cache), "bytes": cache.used_bytes, "hits": cache.hits, "misses": cache.misses}


async def _config(router: Router, serving: Serving, request: Request) -> Response:
    return JSONResponse(
        {
            "version": router.version,
            "base": {"alias": router.base.alias, "served_names": list(serving.served_names)},
            "methods": methods_of(router.loaded.config),
            "deadline_ms": router.classifiers.cascade.deadline_ms,  # in force, where the configuration names none
            "labels": msgspec.to_builtins(router.classifiers.labels),
            "config": masked(router.loaded.config),
        }
    )


async def _classify(router: Router, serving: Serving, request: Request) -> Response:
    """The plan for `{"text": ...}` or for a whole request body; nothing is generated, loaded or counted."""
    try:
        members = json_edit.whole(await request.body())
    except json_edit.NotAnObject as error:
        return _error(400, f"the body must be a JSON object: {error}")
    try:
        if "text" in members:
            text = json_edit.read(members["text"])
            queries = (Query(text, (text,)),) if isinstance(text, str) else None
        else:
            shape = shape_of(members)
            queries = shape.read(members) if shape else None
    except ValueError as error:
        return _error(400, f"the body cannot be read: {error}")
    if queries is None:
        return _error(400, 'the body needs "text" (a string), or the "messages", "prompt" or "input" of a request')
    client = client_of(router, request.scope, members)
    plan = await router.plan(queries, client, model=json_edit.text(members.get("model")), calls=False)
    taken = await foresee(router, plan, serving.adapters, client.tenant)
    taken.release()
    answer = {**msgspec.to_builtins(plan), "model": taken.candidate.model, "reason": taken.reason}
    return Response(json.dumps(answer, ensure_ascii=False), media_type="application/json")


async def _adapters(router: Router, serving: Serving, request: Request) -> Response:
    if serving.adapters is None:
        return JSONResponse({"adapters": []})
    return JSONResponse(await serving.adapters.report())


async def _reload(router: Router, serving: Serving, request: Request) -> Response:
    """Reads the configuration's file now; 409 when it is refused, and the old one stays in force."""
    if serving.reloading is None:
        return _error(503, "the configuration is not followed")
    result = await serving.reloading.reload()
    status = 409 if result.outcome == "refused" else 200
    return JSONResponse(dataclasses.asdict(result), status)


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    """What a user thought of an answer."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]  # the answer's
    score: float  # the more, the better
    comment: Annotated[str, msgspec.Meta(max_length=4096)] | None = None


async def _feedback(router: Router, serving: Serving, request: Request) -> Response:
    """Joins an outcome to the decision behind an answer; 404 when nobody could ever find that decision."""
    try:
        said = msgspec.json.decode(await request.body(), type=Feedback)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _error(400, f'the body must be {{"id": ..., "score": ..., "comment"?: ...}}: {error}')
    if not math.isfinite(said.score):
        return _error(400, "score must be a finite number")
    decision = serving.record.feedback(said.id, said.score, said.comment)
    if decision is None and not serving.record.keeps_feedback:
        text = f"this process knows no answer {said.id!r}, and router.audit.path names no record for it to be found in"
        return _error(404, text)
    arm = decision.plan.assignment.arm if decision is not None and decision.plan.assignment is not None else None
    return JSONResponse({"id": said.id, "category": decision and decision.plan.category, "arm": arm})


async def _decisions(router: Router, serving: Serving, request: Request) -> Response:
    """The latest decisions of this process, the newest first."""
    asked = request.query_params.get("limit", "100")
    if not asked.isdecimal() or not 1 <= int(asked) <= LATEST:
        return _error(400, f"limit must be a number from 1 to {LATEST}, and is {asked!r}")
    content = msgspec.json.encode({"process": os.getpid(), "decisions": serving.record.latest(int(asked))})
    return Response(content, media_type="application/json")


def _not_admin(router: Router, request: Request) -> str | None:
    """Why this request may not use an admin route."""
    variable = router.loaded.config.router.admin_key_env
    key = os.environ.get(variable, "") if variable else ""
    if not key:
        said = f"the environment variable {variable} is empty" if variable else "router.admin_key_env names none"
        return f"this route needs an admin key, and {said}"
    if not secrets.compare_digest(request.headers.get(ADMIN_HEADER, "").encode(), key.encode()):
        return f"this route needs the admin key in the header {ADMIN_HEADER}"
    return None


def _error(status: int, message: str) -> JSONResponse:
    kind = {400: "BadRequestError", 403: "PermissionDeniedError", 404: "NotFoundError"}.get(
        status, "ServiceUnavailableError"
    )
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
