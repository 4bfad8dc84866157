"""Fixtures: the middleware and the API routes over an application that records the requests it receives."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from vllm_lora_router.adapters.runtime.lease import (
    AdapterUnavailableError,
    LeaseRefusedError,
    OtherTenantsAdapterError,
    UnknownAdapterError,
)
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.api import include_routes
from vllm_lora_router.server.middleware import LoraRouterMiddleware
from vllm_lora_router.server.state import Serving

SERVED_NAMES = ("served-base",)

CONFIG = """
model_config:
  base:
    reasoning_family: qwen3
    loras: [{name: medical-lora}, {name: second-lora}, {name: legal-lora}, {name: odd-lora}]
default_model: base
keyword_rules:
  - {category: medical, keywords: [blood, symptom]}
  - {category: legal, keywords: [lawsuit]}
  - {category: "Größe/量", keywords: [size]}
  - {category: "100 %: x", keywords: [lines]}
categories:
  - name: medical
    system_prompt: You are a medical expert.
    model_scores:
      - {model: base, lora_name: second-lora, score: 0.5}
      - {model: base, lora_name: medical-lora, score: 0.9, use_reasoning: true}
  - name: legal
    model_scores: [{model: base, lora_name: legal-lora}]
  - name: "Größe/量"
    model_scores: [{model: base, lora_name: odd-lora}]
  - name: "100 %: x"
    model_scores: [{model: base, lora_name: odd-lora}]
"""
ADMIN_CONFIG = CONFIG + "router: {admin_key_env: TEST_ADMIN_KEY}\n"
ADMIN_KEY = {"x-lora-router-admin-key": "boss"}


@dataclass
class FakeLease:
    """A lease on an adapter version."""

    adapters: "FakeAdapters"
    name: str
    model: str

    @property
    def version(self) -> "FakeLease":
        return self

    @property
    def engine_name(self) -> str:
        return self.model

    @property
    def digest(self) -> str:
        return f"digest of {self.model}"

    async def acquire_slot(self) -> None:
        await self.adapters.slot.wait()

    def release(self) -> None:
        self.adapters.leased.remove(self.name)

    def pin(self) -> None:
        self.adapters.pinned.append(self.name)


@dataclass
class FakeAdapters:
    """Adapters for requests: some are loaded, and others take a while or do not load."""

    loaded: set[str] = field(default_factory=lambda: {"medical-lora", "second-lora", "legal-lora", "odd-lora"})
    loading: dict[str, asyncio.Event] = field(default_factory=dict)  # adapter -> set when it is loaded
    broken: dict[str, str] = field(default_factory=dict)  # adapter -> why it does not load
    unavailable: dict[str, str] = field(default_factory=dict)  # adapter -> what the server lacks to load it
    other_tenants: set[str] = field(default_factory=set)  # adapters of another tenant than the client's
    unregistered: set[str] = field(default_factory=set)  # adapters that could be loaded and have no name in vLLM yet
    versions: dict[str, str] = field(default_factory=dict)  # adapter -> name of its version in the engine
    forbidden: set[str] = field(default_factory=set)  # adapters that clients may not name
    leased: list[str] = field(default_factory=list)
    lease_calls: list[str] = field(default_factory=list)  # adapters passed to `lease`, which may load them
    pinned: list[str] = field(default_factory=list)
    unknown_uses: int = 0  # running requests with unknown adapters
    slot: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.slot.set()

    def lease_now(
        self, name: str, tenant: str | None, *, by_client: bool = False, require_loaded: bool = True
    ) -> FakeLease | None:
        known = name in self.loaded or (not require_loaded and name in self.loading)
        return self._lease(name) if known and not (by_client and name in self.forbidden) else None

    async def lease(self, name: str, tenant: str | None, *, by_client: bool = False) -> FakeLease:
        self.lease_calls.append(name)
        if name in self.unavailable:
            raise AdapterUnavailableError(self.unavailable[name])
        if name in self.broken:
            raise LeaseRefusedError(self.broken[name])
        if name in self.other_tenants and not by_client:
            raise OtherTenantsAdapterError(f"adapter {name!r} belongs to another tenant")
        if name not in self.loading or (by_client and name in self.forbidden):
            raise UnknownAdapterError(f"there is no adapter {name!r}")
        await self.loading[name].wait()
        return self._lease(name)

    async def can_serve(self, name: str, tenant: str | None) -> bool:
        return name in self.loaded or name in self.unregistered

    async def belongs_to_other_tenant(self, name: str, tenant: str | None) -> bool:
        return name in self.other_tenants

    async def names(self, tenant: str | None) -> list[str]:
        return [*sorted(self.loaded - self.forbidden), *([f"{tenant}s-own"] if tenant else [])]

    def health(self) -> dict[str, Any]:
        return {"unavailable": len(self.unavailable), "problem": next(iter(self.unavailable.values()), None)}

    async def report(self) -> dict[str, Any]:
        return {"adapters": ["all of them"]}

    def owns(self, engine_name: str) -> bool:
        return "@" in engine_name

    @contextmanager
    def track_unknown_use(self) -> Iterator[None]:
        self.unknown_uses += 1
        yield
        self.unknown_uses -= 1

    def _lease(self, name: str) -> FakeLease:
        self.leased.append(name)
        return FakeLease(self, name, self.versions.get(name, name))


@dataclass
class ReceivedRequests:
    """The requests that the application behind the middleware received."""

    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return self.bodies[-1]

    @property
    def json(self) -> dict:
        return json.loads(self.bodies[-1])


@dataclass
class App:
    """The application under test."""

    serving: Serving
    adapters: FakeAdapters
    received: ReceivedRequests
    asgi: LoraRouterMiddleware

    def configure(self, text: str, folder: Path) -> Router:
        """Put another configuration into effect."""
        file = folder / "config.yaml"
        file.write_text(text)
        loaded = load(file)
        router = Router.build(loaded, served_base(loaded, SERVED_NAMES))
        self.serving.start(router, SERVED_NAMES, self.adapters)
        return router


@dataclass(frozen=True)
class ReceivedResponse:
    """A response as the client received it."""

    status: int
    headers: dict[str, str]
    body: bytes


async def post_json(
    asgi: ASGIApp, path: str, request: bytes | dict[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()
) -> ReceivedResponse:
    """Send a JSON POST to the ASGI application directly, from a client that does not disconnect."""
    content = request if isinstance(request, bytes) else json.dumps(request).encode()
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])
    sent: list[Message] = []

    async def receive() -> Message:
        for message in messages:
            return message
        await asyncio.Event().wait()
        raise AssertionError("the client does not disconnect")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers],
    }
    await asgi(scope, receive, send)
    start, *rest = sent
    return ReceivedResponse(
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message["body"] for message in rest),
    )


def body_for(path: str, text: str, **more: Any) -> dict[str, Any]:
    """Return a request body for one of `ROUTES`, without the model. On routes that take tokens it contains no text."""
    messages = [{"role": "user", "content": text}]
    if path.endswith(("derender", "generate", "detokenize")):
        return {"tokens": [1, 2], "token_ids": [1, 2], **more}
    if path.endswith("batch"):
        return {"messages": [messages], **more}
    if path.startswith("/v1/completions"):
        return {"prompt": text, **more}
    if path.startswith("/v1/responses"):
        return {"input": text, **more}
    if path in ("/v1/systemone", "/v1/decisions"):
        return {"state": text, "questions": {"q": {"type": "boolean"}}, **more}
    if path == "/generative_scoring":
        return {"query": text, "items": ["a", "b"], "label_token_ids": [1, 2], **more}
    return {"messages": messages, **more}


@pytest.fixture
def app(tmp_path: Path) -> App:
    return echo(tmp_path)


def echo(folder: Path, config: str = CONFIG) -> App:
    """Return the middleware over an application that answers on all of vLLM's routes."""
    received, serving = ReceivedRequests(), Serving()

    async def echo(request: Request) -> Response:
        received.bodies.append(await request.body())
        received.headers.append(dict(request.headers))
        if b"stream" in received.body:
            return StreamingResponse(iter([b"data: 1\n\n", b"data: 2\n\n"]), media_type="text/event-stream")
        return JSONResponse({"answer": "echo"}, status_code=400 if b"wrong" in received.body else 200)

    async def models(request: Request) -> Response:
        entries = [
            {"id": name, "owned_by": "vllm", "max_model_len": 7} for name in ("served-base", "medical-lora@1a2b3c4d")
        ]
        return JSONResponse({"object": "list", "data": entries})

    paths = (*ROUTES, "/v1/embeddings")
    inner = FastAPI(routes=[*(Route(path, echo, methods=["POST"]) for path in paths), Route("/v1/models", models)])
    include_routes(inner, serving)
    app = App(serving, FakeAdapters(), received, LoraRouterMiddleware(inner, serving))
    app.configure(config, folder)
    return app


@pytest.fixture
async def client(app: App) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.fixture
async def admin(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client that sends the admin key."""
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    app.configure(ADMIN_CONFIG, tmp_path)
    transport = httpx.ASGITransport(app=app.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=ADMIN_KEY) as client:
        yield client
