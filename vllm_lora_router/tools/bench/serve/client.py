"""The client of the benchmark: streamed chat completions, and the moments at which their pieces came."""

import json
import time
from dataclasses import dataclass, field

import aiohttp

_PATH = "/v1/chat/completions"
_MODEL = b'"model":"'
_DONE = b"data: [DONE]"


@dataclass(slots=True)
class Answered:
    """A request as its client saw it; moments are `time.perf_counter()`, in seconds."""

    began: float
    moments: list[float] = field(default_factory=list)  # of what came, each piece as it came
    model: str = ""  # what the answer says
    error: str = ""  # why it is no answer

    @property
    def first_ms(self) -> float:
        """Time to first token: vLLM sends nothing before it has one."""
        return (self.moments[0] - self.began) * 1000

    @property
    def total_ms(self) -> float:
        """Until everything was there."""
        return (self.moments[-1] - self.began) * 1000

    @property
    def gaps_ms(self) -> list[float]:
        """Between the pieces."""
        return [(after - before) * 1000 for before, after in zip(self.moments, self.moments[1:], strict=False)]


def request(model: str, prompt: str, tokens: int) -> bytes:
    """A chat completion of exactly so many tokens, streamed."""
    content = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    return json.dumps(content).encode()


# Servers close a connection that nobody uses, vLLM's after five seconds: a request on its way there would be lost.
UNUSED_S = 2.0


def session(url: str) -> aiohttp.ClientSession:
    """Connections to a server, each used again."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=UNUSED_S)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=300))


async def ask(http: aiohttp.ClientSession, content: bytes, into: Answered | None = None) -> Answered:
    """Sends a request and reads its answer; never raises for what a server or a network does.

    Args:
        into: is filled as the answer comes, for who looks at it before its end.
    """
    answered = into or Answered(time.perf_counter())
    answered.began = time.perf_counter()
    last = b""
    try:
        async with http.post(_PATH, data=content, headers={"content-type": "application/json"}) as response:
            if response.status != 200:
                answered.error = f"{response.status}: {(await response.text())[:300]}"
                return answered
            async for piece in response.content.iter_any():
                answered.moments.append(time.perf_counter())
                if not answered.model and (at := piece.find(_MODEL)) >= 0:
                    answered.model = piece[at + len(_MODEL) :].partition(b'"')[0].decode()
                last = piece
    except (aiohttp.ClientError, TimeoutError) as error:
        answered.error = f"{type(error).__name__}: {error}"
        return answered
    if _DONE not in last:
        answered.error = f"the stream ended without [DONE]: ...{last[-200:]!r}"
    return answered
