"""The benchmark's client: streamed chat completions with the arrival time of each chunk."""

import json
import time
from dataclasses import dataclass, field

import aiohttp

_PATH = "/v1/chat/completions"
_MODEL = b'"model":"'
_DONE = b"data: [DONE]"


@dataclass(slots=True)
class Response:
    """A response as its client sees it; times are `time.perf_counter()` in seconds."""

    started_at: float
    chunk_times: list[float] = field(default_factory=list)  # arrival of each chunk
    model: str = ""  # the `model` of the response
    error: str = ""  # why the request failed

    @property
    def first_ms(self) -> float:
        """Return the time to the first token; vLLM sends nothing before it."""
        return (self.chunk_times[0] - self.started_at) * 1000

    @property
    def total_ms(self) -> float:
        """Return the time until the response was complete."""
        return (self.chunk_times[-1] - self.started_at) * 1000

    @property
    def gaps_ms(self) -> list[float]:
        """Return the gaps between the chunks."""
        return [(after - before) * 1000 for before, after in zip(self.chunk_times, self.chunk_times[1:], strict=False)]


def chat_request(model: str, prompt: str, tokens: int) -> bytes:
    """Return the body of a streamed chat completion with exactly `tokens` tokens."""
    content = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    return json.dumps(content).encode()


# Servers close idle connections (vLLM after five seconds), and a request sent at that moment would be lost.
KEEP_ALIVE_S = 2.0


def session(url: str) -> aiohttp.ClientSession:
    """Return a client session with reused connections."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=300))


async def send(http: aiohttp.ClientSession, content: bytes, into: Response | None = None) -> Response:
    """Send a request and read its response; server and network errors are stored, not raised.

    Args:
        http: the session.
        content: the request body.
        into: a response to fill while it arrives, for readers that need it before its end.
    """
    received = into or Response(time.perf_counter())
    received.started_at = time.perf_counter()
    last = b""
    try:
        async with http.post(_PATH, data=content, headers={"content-type": "application/json"}) as response:
            if response.status != 200:
                received.error = f"{response.status}: {(await response.text())[:300]}"
                return received
            async for chunk in response.content.iter_any():
                received.chunk_times.append(time.perf_counter())
                if not received.model and (at := chunk.find(_MODEL)) >= 0:
                    received.model = chunk[at + len(_MODEL) :].partition(b'"')[0].decode()
                last = chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        received.error = f"{type(error).__name__}: {error}"
        return received
    if _DONE not in last:
        received.error = f"the stream ended without [DONE]: ...{last[-200:]!r}"
    return received
