"""Clients that send requests without a pause, and what each of them received."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# Longer than four blocks of the KV cache (128 tokens each on a CPU, one byte per token), and always the same, so that
# a cache entry of another adapter version would be hit.
PROMPT = "Please read this carefully, for it is always the same. " * 11


@dataclass(frozen=True)
class ChatResult:
    """One request as its client saw it. Times are `time.monotonic()`."""

    adapter: str  # the adapter that should answer
    began: float
    ended: float
    status: int
    model: str  # as in the response
    text: str
    reason: str
    error: str = ""


def body(model: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 16,
        "temperature": 0,
        **more,
    }


async def send_chat(session: aiohttp.ClientSession, adapter: str, content: dict[str, Any]) -> ChatResult:
    began = time.monotonic()
    try:
        async with session.post("/v1/chat/completions", json=content) as response:
            answer = json.loads(await response.read())
            text = answer["choices"][0]["message"]["content"] if "choices" in answer else ""
            error = "" if response.status == 200 else json.dumps(answer)[:300]
            reason = response.headers.get("x-lora-router-reason", "")
            model = answer.get("model", "")
            return ChatResult(adapter, began, time.monotonic(), response.status, model, text, reason, error)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return ChatResult(adapter, began, time.monotonic(), 0, "", "", "", f"{type(error).__name__}: {error}")


@dataclass
class StreamResult:
    """One streamed response, with the time of each chunk that has text."""

    text: str = ""
    times: list[float] = field(default_factory=list)
    began: float = 0.0
    model: str = ""
    error: str = ""

    @property
    def largest_gap_s(self) -> float:
        return max((after - before for before, after in zip(self.times, self.times[1:], strict=False)), default=0.0)


async def stream_chat(
    session: aiohttp.ClientSession, content: dict[str, Any], into: StreamResult | None = None
) -> StreamResult:
    """Stream a response. `into` can be read while the response is arriving."""
    result = into or StreamResult()
    result.began = time.monotonic()
    try:
        async with session.post("/v1/chat/completions", json={**content, "stream": True}) as response:
            if response.status != 200:
                result.error = (await response.text())[:300]
                return result
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    result.error = json.dumps(chunk)[:300]
                    return result
                result.model = chunk["model"]
                if text := (chunk["choices"][0]["delta"].get("content") or ""):
                    result.text += text
                    result.times.append(time.monotonic())
    except (aiohttp.ClientError, TimeoutError) as error:
        result.error = f"{type(error).__name__}: {error}"
    return result


class Traffic:
    """Clients that send one request after the other until they are stopped."""

    def __init__(
        self, url: str, clients: int, next_request: Callable[[random.Random], tuple[str, dict[str, Any]]]
    ) -> None:
        """
        Args:
            next_request: returns the adapter that should answer, and the body to send.
        """
        self.results: list[ChatResult] = []
        self._url, self._clients, self._next_request = url, clients, next_request
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Traffic":
        self._session = session(self._url)
        self._tasks = [asyncio.ensure_future(self._client(seed)) for seed in range(self._clients)]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def until(self, count: int, hang_guard_s: float = 3600) -> None:
        """Wait until this many requests were answered."""
        deadline = time.monotonic() + hang_guard_s
        while len(self.results) < count and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    async def _client(self, seed: int) -> None:
        chance = random.Random(seed)
        while True:
            adapter, content = self._next_request(chance)
            self.results.append(await send_chat(self._session, adapter, content))
            if self.results[-1].status == 0:
                await asyncio.sleep(0.5)

    @property
    def failed(self) -> list[ChatResult]:
        return [result for result in self.results if result.status != 200]

    def reasons(self) -> Counter[str]:
        return Counter(result.reason for result in self.results)


def session(url: str) -> aiohttp.ClientSession:
    """Return a session with a connection per request, so that requests reach all API-server processes."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=180))


def models_with_several_answers(results: list[ChatResult]) -> dict[str, set[str]]:
    """Return each `model` of responses that came with more than one text; a version must have one."""
    texts: dict[str, set[str]] = {}
    for result in results:
        if result.status == 200:
            texts.setdefault(result.model, set()).add(result.text)
    return {model: answers for model, answers in texts.items() if len(answers) > 1}


def say(title: str, **figures: object) -> None:
    """Print a line of figures; launch/faults.sh shows them."""
    print(f"\n{title}: " + ", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
