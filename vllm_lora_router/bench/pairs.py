"""What routing adds to a request: alternating pairs on one connection, naming the adapter and asking for MoM."""

import argparse
import http.client
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, sqrt
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import track


@dataclass(frozen=True)
class Interval:
    """A median and its 95 % confidence interval, in milliseconds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:+.3f} ms, 95 % interval {self.low:+.3f} to {self.high:+.3f}"


class BenchError(RuntimeError):
    """The server did not do what the measurement is about."""


def median_interval(values: Sequence[float]) -> Interval:
    """The median and its distribution-free interval from order statistics.

    The ranks are those of the sign test, by the normal approximation of the binomial; at least 10 values.
    Source: Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2.
    """
    ordered = sorted(values)
    half = 1.959964 * sqrt(len(ordered)) / 2
    low = max(floor(len(ordered) / 2 - half), 0)
    return Interval(statistics.median(ordered), ordered[low], ordered[len(ordered) - 1 - low])


@dataclass(frozen=True)
class Pairs:
    """The times of both members of each pair, in milliseconds, and what the server says it added to the routed ones."""

    named_ms: Sequence[float]
    routed_ms: Sequence[float]
    overhead_ms: Sequence[float]

    @property
    def difference(self) -> Interval:
        return median_interval([routed - named for named, routed in zip(self.named_ms, self.routed_ms, strict=True)])


def measure(url: str, question: str, adapter: str, pairs: int, *, seed: int = 0) -> Pairs:
    """Sends the same request twice a pair, in random order, each for one token.

    Raises:
        BenchError: the server answers with an error, or routes the question to something other than `adapter`.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=120)
    order = random.Random(seed)
    named, routed, overhead = [], [], []
    for index in track(range(pairs + 20), description="pairs", transient=True):
        both = [(named, adapter), (routed, "MoM")]
        order.shuffle(both)
        for times, model in both:
            # A question of its own a pair: what was classified before is not classified again.
            took_ms, headers = _post(connection, model, f"{question} ({index})")
            if model == "MoM" and headers.get("x-vsr-selected-model") != adapter:
                raise BenchError(f"{question!r} went to {headers.get('x-vsr-selected-model')!r}, not to {adapter!r}")
            if index >= 20:  # the first are for warming up
                times.append(took_ms)
                if model == "MoM":
                    overhead.append(float(headers["x-lora-router-overhead-ms"]))
    connection.close()
    return Pairs(named, routed, overhead)


def main() -> int:
    """Prints the figures for a server that is up."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.bench.pairs", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--question", default="What causes high blood pressure?")
    parser.add_argument("--adapter", default="medical-lora", help="where the question is routed; named in every pair")
    parser.add_argument("--pairs", type=int, default=1000)
    args = parser.parse_args()
    report(Console(), measure(args.url, args.question, args.adapter, args.pairs), "routing")
    return 0


def report(console: Console, pairs: Pairs, what: str) -> None:
    """Prints a measurement in three lines."""
    console.print(f"{what}: {len(pairs.named_ms)} alternating pairs on one connection, one token each", highlight=False)
    console.print(
        f"  median named {statistics.median(pairs.named_ms):.2f} ms, routed {statistics.median(pairs.routed_ms):.2f} "
        f"ms, the server's own count of what it added {statistics.median(pairs.overhead_ms):.3f} ms",
        highlight=False,
    )
    console.print(f"  median difference {pairs.difference}", highlight=False)


def _post(connection: http.client.HTTPConnection, model: str, question: str) -> tuple[float, http.client.HTTPMessage]:
    messages = [{"role": "user", "content": question}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 1, "temperature": 0})
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    took_ms = (time.perf_counter() - began) * 1000
    if response.status != 200:
        raise BenchError(f"the server answers {response.status}: {content[:300]!r}")
    return took_ms, response.headers


if __name__ == "__main__":
    raise SystemExit(main())
