"""The middleware and our routes over an application that says back what reached it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from vllm_lora_router.adapters.runtime.lease import AnothersAdapter, NotLeased, UnknownAdapter
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.api import routes
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
  - {category: "two\\r\\nlines: x", keywords: [lines]}
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
  - name: "two\\r\\nlines: x"
    model_scores: [{model: base, lora_name: odd-lora}]
"""


@dataclass
class FakeLease:
    """A lease on an adapter whose version is called like itself."""

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

    async def enter(self) -> None:
        await self.adapters.slot.wait()

    def release(self) -> None:
        self.adapters.leased.remove(self.name)

    def keep(self) -> None:
        self.adapters.kept.append(self.name)


@dataclass
class FakeAdapters:
    """Adapters that are in memory, and others that take a while or do not load."""

    loaded: set[str] = field(default_factory=lambda: {"medical-lora", "second-lora", "legal-lora", "odd-lora"})
    coming: dict[str, asyncio.Event] = field(default_factory=dict)  # loaded when the event is set
    broken: dict[str, str] = field(default_factory=dict)  # and why
    anothers: set[str] = field(default_factory=set)  # another tenant's than who asks
    unasked: set[str] = field(default_factory=set)  # they could be loaded, and vLLM does not know them yet
    versions: dict[str, str] = field(default_factory=dict)  # the engine's name of one that is not called like itself
    forbidden: set[str] = field(default_factory=set)  # for clients
    leased: list[str] = field(default_factory=list)
    waited_for: list[str] = field(default_factory=list)  # what may have to be loaded first
    kept: list[str] = field(default_factory=list)
    under_way: int = 0  # requests that were not looked into
    slot: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.slot.set()

    def lease_now(
        self, name: str, tenant: str | None, *, by_client: bool = False, loaded: bool = True
    ) -> FakeLease | None:
        known = name in self.loaded or (not loaded and name in self.coming)
        return self._lease(name) if known and not (by_client and name in self.forbidden) else None

    async def lease(self, name: str, tenant: str | None, *, by_client: bool = False) -> FakeLease:
        self.waited_for.append(name)
        if name in self.broken:
            raise NotLeased(self.broken[name])
        if name in self.anothers and not by_client:
            raise AnothersAdapter(f"adapter {name!r} is another tenant's")
        if name not in self.coming or (by_client and name in self.forbidden):
            raise UnknownAdapter(f"there is no adapter {name!r}")
        await self.coming[name].wait()
        return self._lease(name)

    async def can_serve(self, name: str, tenant: str | None) -> bool:
        return name in self.loaded or name in self.unasked

    async def is_anothers(self, name: str, tenant: str | None) -> bool:
        return name in self.anothers

    async def names(self, tenant: str | None) -> list[str]:
        return [*sorted(self.loaded - self.forbidden), *([f"{tenant}s-own"] if tenant else [])]

    async def report(self) -> dict[str, Any]:
        return {"adapters": ["all of them"]}

    def owns(self, engine_name: str) -> bool:
        return "@" in engine_name

    @contextmanager
    def unread(self) -> Iterator[None]:
        self.under_way += 1
        yield
        self.under_way -= 1

    def _lease(self, name: str) -> FakeLease:
        self.leased.append(name)
        return FakeLease(self, name, self.versions.get(name, name))


@dataclass
class Reached:
    """What the application behind the middleware got."""

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
    reached: Reached
    asgi: LoraRouterMiddleware

    def configure(self, text: str, folder: Path) -> Router:
        """Puts another configuration in force."""
        file = folder / "config.yaml"
        file.write_text(text)
        loaded = load(file)
        router = Router.build(loaded, served_base(loaded, SERVED_NAMES))
        self.serving.start(router, SERVED_NAMES, self.adapters)
        return router


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes


async def ask(
    asgi: ASGIApp, path: str, request: bytes | dict[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()
) -> Answer:
    """A JSON POST without a client of httpx's in between, of a client that stays."""
    content = request if isinstance(request, bytes) else json.dumps(request).encode()
    given = iter([{"type": "http.request", "body": content, "more_body": False}])
    sent: list[Message] = []

    async def receive() -> Message:
        for message in given:
            return message
        await asyncio.Event().wait()
        raise AssertionError("nobody leaves")

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
    return Answer(
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message["body"] for message in rest),
    )


def request_to(path: str, words: str, **more: Any) -> dict[str, Any]:
    """What a client sends to one of `ROUTES`, but for the model. On routes that take tokens there are no words."""
    messages = [{"role": "user", "content": words}]
    if path.endswith(("derender", "generate", "detokenize")):
        return {"tokens": [1, 2], "token_ids": [1, 2], **more}
    if path.endswith("batch"):
        return {"messages": [messages], **more}
    if path.startswith("/v1/completions"):
        return {"prompt": words, **more}
    if path.startswith("/v1/responses"):
        return {"input": words, **more}
    if path in ("/v1/systemone", "/v1/decisions"):
        return {"state": words, "questions": {"q": {"type": "boolean"}}, **more}
    if path == "/generative_scoring":
        return {"query": words, "items": ["a", "b"], "label_token_ids": [1, 2], **more}
    return {"messages": messages, **more}


@pytest.fixture
def app(tmp_path: Path) -> App:
    return echo(tmp_path)


def echo(folder: Path, config: str = CONFIG) -> App:
    """Our middleware before an application that answers on all of vLLM's routes."""
    reached, serving = Reached(), Serving()

    async def echo(request: Request) -> Response:
        reached.bodies.append(await request.body())
        reached.headers.append(dict(request.headers))
        if b"stream" in reached.body:
            return StreamingResponse(iter([b"data: 1\n\n", b"data: 2\n\n"]), media_type="text/event-stream")
        return JSONResponse({"said": "back"}, status_code=400 if b"wrong" in reached.body else 200)

    async def models(request: Request) -> Response:
        cards = [
            {"id": name, "owned_by": "vllm", "max_model_len": 7} for name in ("served-base", "medical-lora@1a2b3c4d")
        ]
        return JSONResponse({"object": "list", "data": cards})

    paths = (*ROUTES, "/v1/embeddings")
    inner = Starlette(
        routes=[
            *(Route(path, echo, methods=["POST"]) for path in paths),
            Route("/v1/models", models),
            *routes(serving),
        ]
    )
    app = App(serving, FakeAdapters(), reached, LoraRouterMiddleware(inner, serving))
    app.configure(config, folder)
    return app


@pytest.fixture
async def client(app: App) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
