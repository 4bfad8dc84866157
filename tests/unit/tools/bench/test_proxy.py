"""The lean proxy: forwarded requests and responses."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from vllm_lora_router.classifiers.models.encoder import Encoder
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.tools.bench.serve.client import Response, chat_request, send, session
from vllm_lora_router.tools.bench.serve.embeddings import app as embeddings_app
from vllm_lora_router.tools.bench.serve.proxy import Proxy
from vllm_lora_router.tools.bench.serve.settings import SUBJECTS, configuration, examples, held_out_questions

CONFIG = """
model_config: {base: {loras: [{name: legal-lora}]}}
default_model: base
keyword_rules: [{category: legal, keywords: [lawsuit]}]
categories: [{name: legal, model_scores: [{model: base, lora_name: legal-lora}]}]
"""


class Upstream:
    """A server that streams two chunks. The second one waits for `may_end`."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        model = json.loads(self.bodies[-1])["model"]
        if model == "unheard":
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f'data: {{"model":"{model}"}}\n\n'.encode())
        await self.may_end.wait()
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def url(upstream: Upstream, tmp_path: Path) -> AsyncIterator[str]:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    loaded = load(file)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", upstream.chat)
    async with TestServer(app) as behind:
        proxy = Proxy(Router.build(loaded, served_base(loaded)), str(behind.make_url("")))
        async with TestServer(proxy.app()) as server:
            yield str(server.make_url(""))


async def test_proxy_writes_the_adapter_and_changes_nothing_else(url: str, upstream: Upstream) -> None:
    sent = chat_request("MoM", "a lawsuit", 4)
    async with session(url) as http:
        answered = await send(http, sent)
    assert (answered.model, answered.error) == ("legal-lora", "")
    assert json.loads(upstream.bodies[0]) == {**json.loads(sent), "model": "legal-lora"}


async def test_request_that_names_its_adapter_is_forwarded_unchanged(url: str, upstream: Upstream) -> None:
    sent = chat_request("legal-lora", "hello", 4)
    async with session(url) as http:
        await send(http, sent)
    assert upstream.bodies == [sent]


async def test_chunks_are_forwarded_as_they_arrive(url: str, upstream: Upstream) -> None:
    upstream.may_end.clear()
    response = Response(0.0)
    async with session(url) as http, asyncio.timeout(60):
        task = asyncio.ensure_future(send(http, chat_request("MoM", "a lawsuit", 4), response))
        while not response.chunk_times:
            await asyncio.sleep(0.001)
        assert not task.done()
        upstream.may_end.set()
        await task
    assert response.model == "legal-lora" and len(response.chunk_times) > 1


async def test_upstream_error_is_forwarded(url: str) -> None:
    async with session(url) as http:
        answered = await send(http, chat_request("unheard", "hello", 4))
    assert answered.error.startswith("404") and "no such model" in answered.error
    assert not answered.chunk_times


async def test_encoder_is_served_in_openai_embeddings_format() -> None:
    openai = pytest.importorskip("openai")
    np = pytest.importorskip("numpy")

    class Letters:
        tokenizer, max_length, runs_on, thread_safe = None, 8, "test, cpu", True

        def __call__(self, texts: list[str], max_tokens: int) -> "np.ndarray":
            return np.array([[len(text), text.count("a")] for text in texts], np.float32)

    async with TestServer(embeddings_app(Encoder(Letters(), 8, Worker("test"), "letters"))) as server:
        client = openai.AsyncOpenAI(base_url=f"{server.make_url('/v1')}", api_key="none")
        for form in ("float", "base64"):
            embeddings = await client.embeddings.create(model="any", input=["banana", "kiwi"], encoding_format=form)
            assert len(embeddings.data) == 2
        embeddings = await client.embeddings.create(model="any", input="banana")
        assert embeddings.data[0].embedding == [6.0, 3.0]
        await client.close()
        async with ClientSession() as http, http.get(server.make_url("/health")) as response:
            assert response.status == 200


def test_sent_questions_differ_from_examples(tmp_path: Path) -> None:
    learnt = {text for texts in examples().values() for text in texts}
    assert not learnt & set(held_out_questions()) and set(examples()) == set(SUBJECTS)
    for classifier in ("static", "MiniLM", "domain"):
        file = tmp_path / f"{classifier}.yaml"
        file.write_text(configuration(classifier, None if classifier == "MiniLM" else tmp_path))
        assert load(file).config.default_model == "base"
