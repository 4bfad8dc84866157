"""Clients that ask without a pause, and what is known of every answer."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# Longer than four blocks of the KV cache (128 tokens each on a CPU, a token a byte), and always the same: what another
# version left in the cache would be found.
PROMPT = "Please read this carefully, for it is always the same. " * 11


@dataclass(frozen=True)
class Asked:
    """One request as its client saw it. Moments are `time.monotonic()`."""

    adapter: str  # what was meant
    began: float
    ended: float
    status: int
    model: str  # what the answer says
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


async def ask(session: aiohttp.ClientSession, adapter: str, content: dict[str, Any]) -> Asked:
    began = time.monotonic()
    try:
        async with session.post("/v1/chat/completions", json=content) as response:
            answer = json.loads(await response.read())
            text = answer["choices"][0]["message"]["content"] if "choices" in answer else ""
            error = "" if response.status == 200 else json.dumps(answer)[:300]
            reason = response.headers.get("x-lora-router-reason", "")
            model = answer.get("model", "")
            return Asked(adapter, began, time.monotonic(), response.status, model, text, reason, error)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return Asked(adapter, began, time.monotonic(), 0, "", "", "", f"{type(error).__name__}: {error}")


@dataclass
class Streamed:
    """A stream, with the moment of each of its pieces."""

    text: str = ""
    moments: list[float] = field(default_factory=list)
    began: float = 0.0
    model: str = ""
    error: str = ""

    @property
    def largest_gap_s(self) -> float:
        return max((after - before for before, after in zip(self.moments, self.moments[1:], strict=False)), default=0.0)


async def stream(session: aiohttp.ClientSession, content: dict[str, Any], into: Streamed | None = None) -> Streamed:
    streamed = into or Streamed()
    streamed.began = time.monotonic()
    try:
        async with session.post("/v1/chat/completions", json={**content, "stream": True}) as response:
            if response.status != 200:
                streamed.error = (await response.text())[:300]
                return streamed
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    streamed.error = json.dumps(chunk)[:300]
                    return streamed
                streamed.model = chunk["model"]
                if piece := (chunk["choices"][0]["delta"].get("content") or ""):
                    streamed.text += piece
                    streamed.moments.append(time.monotonic())
    except (aiohttp.ClientError, TimeoutError) as error:
        streamed.error = f"{type(error).__name__}: {error}"
    return streamed


class Traffic:
    """Clients that each ask one question after the other until they are stopped."""

    def __init__(self, url: str, clients: int, question: Callable[[random.Random], tuple[str, dict[str, Any]]]) -> None:
        """`question` gives the adapter that is meant, and the body to send."""
        self.asked: list[Asked] = []
        self._url, self._clients, self._question = url, clients, question
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

    async def until(self, count: int, seconds: float = 3600) -> None:
        """Returns when this many were answered."""
        deadline = time.monotonic() + seconds
        while len(self.asked) < count and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    async def _client(self, seed: int) -> None:
        draw = random.Random(seed)
        while True:
            adapter, content = self._question(draw)
            self.asked.append(await ask(self._session, adapter, content))
            if self.asked[-1].status == 0:
                await asyncio.sleep(0.5)

    @property
    def failed(self) -> list[Asked]:
        return [one for one in self.asked if one.status != 200]

    def reasons(self) -> Counter[str]:
        return Counter(one.reason for one in self.asked)


def session(url: str, *, keep: bool = False) -> aiohttp.ClientSession:
    """A connection a request, so that requests reach all of several API-server processes; `keep` uses one again."""
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=180))


def versions_are_one_to_one(asked: list[Asked]) -> dict[str, set[str]]:
    """The answers that came under each `model`; each must have one."""
    found: dict[str, set[str]] = {}
    for one in asked:
        if one.status == 200:
            found.setdefault(one.model, set()).add(one.text)
    return {model: texts for model, texts in found.items() if len(texts) > 1}
