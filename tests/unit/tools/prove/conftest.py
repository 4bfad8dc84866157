"""A server that speaks as vLLM does where a proof asks it, over a language model that can be looked up."""

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

from vllm_lora_router.tools.prove.endpoint import Endpoint, Served
from vllm_lora_router.tools.prove.pairs import Pair

BASE = "toy/base"
START, SYSTEM, USER, ASSISTANT, END, THOUGHT = range(1, 7)  # every other token is a character

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


class Refused(Exception):
    """What the server answers with an error."""

    def __init__(self, status: int, said: Any) -> None:
        self.status, self.said = status, said
        super().__init__(said)


@dataclass
class Toy:
    """How the server is set; every model likes the letters of its own `skills`."""

    skills: dict[str, str] = field(default_factory=lambda: {BASE: "c", "a-lora": "a", "b-lora": "b"})
    template: str = "chat"  # or: thinks, trims, no system, no answers, none
    context: int = 200
    api_key: str | None = None
    auto: bool = True  # our own server, whose list of models has MoM
    called: dict[str, str] = field(default_factory=dict)  # model -> what answers call it
    certain: float | None = None  # what is told in place of a likelihood
    refuse: Callable[[str, dict[str, Any]], None] = lambda path, body: None
    takes_s: float = 0.0
    asked: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)  # model, tokens before, token
    running: dict[str, int] = field(default_factory=dict)  # model -> requests under way
    together: list[dict[str, int]] = field(default_factory=list)  # `running` at the begin of each
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def likelihood(self, model: str, before: Sequence[int], token: int) -> float:
        """-1 for a letter that the model likes and -3 for others, a little more or less by all that stands before."""
        noise = zlib.crc32(repr((model, tuple(before), token)).encode()) / 2**32 - 0.5
        return (-1.0 if chr(token) in self.skills[model] else -3.0) + noise

    def render(self, body: dict[str, Any]) -> list[int]:
        """The tokens of a chat."""
        messages, goes_on = body["messages"], body.get("continue_final_message", False)
        roles = [message["role"] for message in messages]
        if self.template == "none":
            raise Refused(400, "default chat template is no longer allowed")
        if self.template == "no system" and "system" in roles:
            raise Refused(400, "System role not supported")
        if self.template == "no answers" and goes_on:
            raise Refused(400, "does not support continue_final_message")
        ids = [START]
        for message in messages:
            role = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}[message["role"]]
            thought = [THOUGHT, ord("\n")] if role == ASSISTANT and self.template == "thinks" else []
            content = message["content"].strip() if self.template == "trims" else message["content"]
            ids += [role, *thought, *map(ord, content), END]
        if body.get("add_generation_prompt", True):
            ids.append(ASSISTANT)
        return ids[:-1] if goes_on else ids

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.refuse(path, body)
        if path == "/v1/models":
            names = [BASE, *(name for name in self.skills if name != BASE)]
            cards = [{"id": name, "owned_by": "vllm", "parent": None if name == BASE else BASE} for name in names]
            auto = {"id": "MoM", "owned_by": "vllm_lora_router", "parent": None}
            return {"object": "list", "data": [*cards, *([auto] if self.auto else [])]}
        if body["model"] not in self.skills:
            raise Refused(404, f"The model `{body['model']}` does not exist.")
        if path == "/tokenize":
            ids = self.render(body) if "messages" in body else self.spell(body)
            return {"count": len(ids), "max_model_len": self.context, "tokens": ids}
        if path == "/v1/completions":
            return self.complete(body)
        raise Refused(404, "Not Found")

    @staticmethod
    def spell(body: dict[str, Any]) -> list[int]:
        return [*([START] if body.get("add_special_tokens", True) else []), *map(ord, body["prompt"])]

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model, before, (token,) = body["model"], tuple(body["prompt"]), body["allowed_token_ids"]
        if len(before) + body["max_tokens"] > self.context:
            raise Refused(400, "This model's maximum context length is exceeded")
        with self.lock:
            self.running[model] = self.running.get(model, 0) + 1
            self.together.append({name: count for name, count in self.running.items() if count})
            self.asked.append((model, before, token))
        time.sleep(self.takes_s)
        with self.lock:
            self.running[model] -= 1
        value = self.likelihood(model, before, token) if self.certain is None else self.certain
        logprobs = {"tokens": [f"token_id:{token}"], "token_logprobs": [value]}
        choice = {"index": 0, "text": chr(token), "logprobs": logprobs}
        return {"model": self.called.get(model, model), "choices": [choice]}


@pytest.fixture
def toy() -> Iterator[Toy]:
    """A server on a port of this machine, which can be set otherwise while it runs."""
    toy = Toy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one piece: the body would wait for the client to confirm the head

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, said = 200, {}
            try:
                if toy.api_key and self.headers["authorization"] != f"Bearer {toy.api_key}":
                    raise Refused(401, "Unauthorized")
                said = toy.answer(self.path, json.loads(content or b"{}"))
            except Refused as refused:
                status, said = refused.status, refused.said
                if isinstance(said, str) and status != 401:
                    said = {"error": {"message": said, "code": status}}
                elif status == 401:
                    said = {"error": said}
            told = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64  # more connections at once than that are left waiting for a second

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    toy.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield toy
    server.shutdown()
    server.server_close()


@pytest.fixture
async def endpoint(toy: Toy):
    async with Endpoint(toy.url) as endpoint:
        yield endpoint


@pytest.fixture
def served() -> Served:
    return Served((BASE,), ("a-lora", "b-lora"), (BASE, "a-lora", "b-lora", "MoM"))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes the configuration, with parts of it replaced and lines added."""

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
