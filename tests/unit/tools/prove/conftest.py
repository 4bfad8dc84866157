"""A server with the part of vLLM's API that `prove` uses, over a language model with known likelihoods."""

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.tools.prove.endpoint import Endpoint, ServedModels
from vllm_lora_router.tools.prove.pairs import Pair

BASE = "toy/base"
START, SYSTEM, USER, ASSISTANT, END, THOUGHT = range(1, 7)  # all other tokens are characters

CONFIG = """
model_config:
  base:
    loras: [{name: a-lora}, {name: b-lora}]
  another: {}
default_model: base
keyword_rules:
  - {category: A, keywords: [a]}
categories:
  - name: A
    system_prompt: Say a.
    model_scores: [{model: base, lora_name: b-lora, score: 0.1}, {model: base, lora_name: a-lora, score: 0.9}]
  - {name: B, model_scores: [{model: base, lora_name: b-lora}]}
  - {name: C, model_scores: [{model: base}]}
  - {name: D, model_scores: [{model: another}]}
"""


class RefusedError(Exception):
    """A request that the server answers with an error."""

    def __init__(self, status: int, content: Any) -> None:
        self.status, self.content = status, content
        super().__init__(content)


@dataclass
class ToyServer:
    """Settings and log of the server; every model prefers the letters of its `skills`."""

    skills: dict[str, str] = field(default_factory=lambda: {BASE: "c", "a-lora": "a", "b-lora": "b"})
    template: str = "chat"  # or: thinks, trims, no system, no answers, none
    context: int = 200
    api_key: str | None = None
    auto: bool = True  # whether the list of models contains MoM, as with this router
    answered_as: dict[str, str] = field(default_factory=dict)  # model -> its name in responses
    fixed_value: float | None = None  # returned instead of the log-likelihood
    refuse: Callable[[str, dict[str, Any]], None] = lambda path, body: None
    delay_s: float = 0.0
    requests: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)  # model, context, token
    running: dict[str, int] = field(default_factory=dict)  # model -> running requests
    concurrent: list[dict[str, int]] = field(default_factory=list)  # `running` at the start of each request
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def log_likelihood(self, model: str, context: Sequence[int], token: int) -> float:
        """Return -1 for a letter that the model prefers and -3 for others, plus noise that depends on the context."""
        noise = zlib.crc32(repr((model, tuple(context), token)).encode()) / 2**32 - 0.5
        return (-1.0 if chr(token) in self.skills[model] else -3.0) + noise

    def render(self, body: dict[str, Any]) -> list[int]:
        """Return the tokens of a chat."""
        messages, continues = body["messages"], body.get("continue_final_message", False)
        roles = [message["role"] for message in messages]
        if self.template == "none":
            raise RefusedError(400, "default chat template is no longer allowed")
        if self.template == "no system" and "system" in roles:
            raise RefusedError(400, "System role not supported")
        if self.template == "no answers" and continues:
            raise RefusedError(400, "does not support continue_final_message")
        ids = [START]
        for message in messages:
            role = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}[message["role"]]
            thought = [THOUGHT, ord("\n")] if role == ASSISTANT and self.template == "thinks" else []
            content = message["content"].strip() if self.template == "trims" else message["content"]
            ids += [role, *thought, *map(ord, content), END]
        if body.get("add_generation_prompt", True):
            ids.append(ASSISTANT)
        return ids[:-1] if continues else ids

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.refuse(path, body)
        if path == "/v1/models":
            names = [BASE, *(name for name in self.skills if name != BASE)]
            cards = [{"id": name, "owned_by": "vllm", "parent": None if name == BASE else BASE} for name in names]
            auto = {"id": "MoM", "owned_by": "vllm_lora_router", "parent": None}
            return {"object": "list", "data": [*cards, *([auto] if self.auto else [])]}
        if body["model"] not in self.skills:
            raise RefusedError(404, f"The model `{body['model']}` does not exist.")
        if path == "/tokenize":
            ids = self.render(body) if "messages" in body else self.tokenize(body)
            return {"count": len(ids), "max_model_len": self.context, "tokens": ids}
        if path == "/v1/completions":
            return self.complete(body)
        raise RefusedError(404, "Not Found")

    @staticmethod
    def tokenize(body: dict[str, Any]) -> list[int]:
        return [*([START] if body.get("add_special_tokens", True) else []), *map(ord, body["prompt"])]

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model, context, (token,) = body["model"], tuple(body["prompt"]), body["allowed_token_ids"]
        if len(context) + body["max_tokens"] > self.context:
            raise RefusedError(400, "This model's maximum context length is exceeded")
        with self.lock:
            self.running[model] = self.running.get(model, 0) + 1
            self.concurrent.append({name: count for name, count in self.running.items() if count})
            self.requests.append((model, context, token))
        time.sleep(self.delay_s)
        with self.lock:
            self.running[model] -= 1
        value = self.log_likelihood(model, context, token) if self.fixed_value is None else self.fixed_value
        logprobs = {"tokens": [f"token_id:{token}"], "token_logprobs": [value]}
        choice = {"index": 0, "text": chr(token), "logprobs": logprobs}
        return {"model": self.answered_as.get(model, model), "choices": [choice]}


@pytest.fixture
def toy() -> Iterator[ToyServer]:
    """Run a server on a local port; its settings can change while it runs."""
    toy = ToyServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # sends head and body together; otherwise the body waits for an acknowledgement

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, response = 200, {}
            try:
                if toy.api_key and self.headers["authorization"] != f"Bearer {toy.api_key}":
                    raise RefusedError(401, "Unauthorized")
                response = toy.answer(self.path, json.loads(content or b"{}"))
            except RefusedError as error:
                status, response = error.status, error.content
                if isinstance(response, str) and status != 401:
                    response = {"error": {"message": response, "code": status}}
                elif status == 401:
                    response = {"error": response}
            encoded = response if isinstance(response, bytes) else json.dumps(response).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64  # more concurrent connections wait for a second

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore clients that disconnect."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    toy.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield toy
    server.shutdown()
    server.server_close()


@pytest.fixture
async def endpoint(toy: ToyServer):
    async with Endpoint(toy.url) as endpoint:
        yield endpoint


@pytest.fixture
def served() -> ServedModels:
    return ServedModels((BASE,), ("a-lora", "b-lora"), (BASE, "a-lora", "b-lora", "MoM"))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Write the configuration, with some text replaced or appended."""

    def write(*replacements: tuple[str, str], more: str = "") -> Path:
        text = CONFIG
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "config.yaml"
        file.write_text(text + more, "utf-8")
        return file

    return write


def pairs_of(category: str, answer: str, count: int = 8) -> list[Pair]:
    return [Pair(f"question {n}", answer, category, f"pairs.jsonl:{n + 1}") for n in range(count)]
