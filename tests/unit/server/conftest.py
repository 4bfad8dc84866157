"""The middleware and our routes over an application that says back what reached it."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from vllm_lora_router.config import load
from vllm_lora_router.config.base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.api import routes
from vllm_lora_router.server.middleware import LoraRouterMiddleware
from vllm_lora_router.server.serving import Serving

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
class FakeEngine:
    """What the server would have loaded."""

    served_names: tuple[str, ...] = ("served-base",)
    adapters: set[str] = field(default_factory=lambda: {"medical-lora", "second-lora", "legal-lora", "odd-lora"})

    def can_serve(self, adapter: str) -> bool:
        return adapter in self.adapters


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
    engine: FakeEngine
    reached: Reached
    asgi: LoraRouterMiddleware

    def configure(self, text: str, folder: Path) -> Router:
        """Puts another configuration in force."""
        file = folder / "config.yaml"
        file.write_text(text)
        loaded = load(file)
        router = Router.build(loaded, served_base(loaded, self.engine.served_names))
        self.serving.start(router, self.engine)
        return router


@pytest.fixture
def app(tmp_path: Path) -> App:
    reached, serving = Reached(), Serving()

    async def echo(request: Request) -> Response:
        reached.bodies.append(await request.body())
        reached.headers.append(dict(request.headers))
        if b"stream" in reached.body:
            return StreamingResponse(iter([b"data: 1\n\n", b"data: 2\n\n"]), media_type="text/event-stream")
        return JSONResponse({"said": "back"}, status_code=400 if b"wrong" in reached.body else 200)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "served-base", "owned_by": "vllm", "max_model_len": 7}]})

    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
    inner = Starlette(
        routes=[
            *(Route(path, echo, methods=["POST"]) for path in paths),
            Route("/v1/models", models),
            *routes(serving),
        ]
    )
    app = App(serving, FakeEngine(), reached, LoraRouterMiddleware(inner, serving))
    app.configure(CONFIG, tmp_path)
    return app


@pytest.fixture
async def client(app: App) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
