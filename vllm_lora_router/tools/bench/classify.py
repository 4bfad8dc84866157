"""How fast a domain model or an encoder classifies, alone and under load, as the server would run it."""

import asyncio
import json
import random
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vllm_lora_router.classifiers.model_classifier import ScoredClassifier
from vllm_lora_router.config import load
from vllm_lora_router.config.schema import Runtime
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.tools.bench.gil import gil
from vllm_lora_router.tools.bench.load import Load, closed_loop, open_loop, percentile
from vllm_lora_router.tools.bench.shapes import LABELS, SHAPES, word, write_model
from vllm_lora_router.types import Query

# Nothing is late: what is measured is how long it takes, not what a deadline cuts off.
DEADLINE_MS = 10_000
# What an encoder compares texts with.
EXAMPLES = ("a question about law", "a question about health", "a question about code", "something else")


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    model: str  # a name of `SHAPES`, whose weights are random; or a folder with a sequence classifier or an encoder
    device: str
    runtime: Runtime
    tokens: int  # of each text, special ones not counted
    threads: int = 1  # on a CPU

    def __str__(self) -> str:
        return f"{self.model} on {self.device}, {self.runtime}, {self.tokens} tokens a text"


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds."""

    device: str
    model: str
    runtime: str  # what really ran it
    tokens: int
    load: str  # such as "8 callers", "one at a time", "open, 120/s"
    p50: float
    p95: float
    p99: float
    per_second: float
    batch: float  # texts a batch, on average
    lag_p99: float  # of the event loop
    gil_ms: float | None  # for how long a text kept Python's interpreter lock; None without the package gilknocker
    unanswered: int  # late, or too much to do


def measure(
    subject: Subject,
    callers: Sequence[int],
    *,
    seconds: float,
    batch_ms: float,
    shares: Sequence[float] = (0.5, 0.8),
) -> Iterator[Row]:
    """The figures of one model, each as soon as it is known.

    Args:
        callers: how many ask at the same time, one measurement for each.
        batch_ms: what a batch may take.
        shares: of the greatest throughput, at which questions come by themselves.
    """
    with tempfile.TemporaryDirectory() as folder:
        router = _router(subject, Path(folder))
        scored = next(iter(router.classifiers.scored.values()))
        scored.batcher.budget_s = batch_ms / 1000
        yield from _rows(router, scored, subject, callers, seconds, shares)


def _rows(
    router: Router,
    scored: ScoredClassifier,
    subject: Subject,
    callers: Sequence[int],
    seconds: float,
    shares: Sequence[float],
) -> Iterator[Row]:
    draw = random.Random(0)
    lost = 0

    def text() -> str:  # never the same: what was classified before is not classified again
        return " ".join(word(draw.randrange(10**6)) for _ in range(subject.tokens))

    async def ask(question: str) -> None:
        nonlocal lost
        plan = await router.plan([Query(question, (question,))])
        lost += plan.steps[0].failure is not None

    async def alone(question: str) -> None:
        """As a server would that classifies one text after the other."""
        async with one:
            await asyncio.wrap_future(scored.batcher.worker.submit(lambda: scored.decide([question])))

    one = asyncio.Lock()

    def run(load: Any, what: str, asked: Callable[[str], Awaitable[None]] = ask) -> tuple[Row, Load]:
        nonlocal lost
        lost = 0
        before = (scored.batcher.done.batches, scored.batcher.done.texts)
        with gil() as held:
            found: Load = asyncio.run(load)
        batches = scored.batcher.done.batches - before[0]
        batch = (scored.batcher.done.texts - before[1]) / batches if batches else 1.0
        texts = len(found.times_ms)
        row = Row(
            subject.device,
            subject.model,
            scored.runs_on,
            subject.tokens,
            what,
            p50=round(found.percentile(50), 2),
            p95=round(found.percentile(95), 2),
            p99=round(found.percentile(99), 2),
            per_second=round(found.per_second, 1),
            batch=round(batch, 1),
            lag_p99=round(percentile(found.lag_ms, 99), 2),
            gil_ms=None if held.share is None else round(held.share * found.seconds * 1000 / texts, 3),
            unanswered=lost,
        )
        return row, found

    asyncio.run(closed_loop(ask, text, 4, 0.5))  # what is not warm yet
    peak = 0.0
    for count in callers:
        row, found = run(closed_loop(ask, text, count, seconds), f"{count} caller{'s' if count > 1 else ''}")
        peak = max(peak, found.per_second)
        yield row
    row, _ = run(closed_loop(alone, text, max(callers), seconds), f"{max(callers)} callers, one at a time")
    yield row
    for share in shares:
        rate = peak * share
        row, _ = run(open_loop(ask, text, rate, seconds), f"open, {rate:.0f}/s ({share:.0%})")
        yield row


def _router(subject: Subject, folder: Path) -> Router:
    source: str | Path = Path(subject.model).resolve() if Path(subject.model).is_dir() else subject.model
    if subject.model in SHAPES:
        source = folder / "model"
        write_model(subject.model, source)
    file = folder / "config.yaml"
    if not isinstance(source, Path) or not _classifies(source):
        file.write_text(_config("embedding_model", source, subject, LABELS, EXAMPLES))
    else:
        from vllm_lora_router.classifiers.domain import read_labels

        file.write_text(_config("category_model", source, subject, ["all"]))
        file.write_text(_config("category_model", source, subject, read_labels(load(file))))
    loaded = load(file)
    return Router.build(loaded, served_base(loaded))


def _classifies(folder: Path) -> bool:
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or ()
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def _config(
    setting: str, source: str | Path, subject: Subject, categories: Sequence[str], examples: Sequence[str] = ()
) -> str:
    model = {
        "model_id": str(source),
        "device": subject.device,
        "runtime": subject.runtime,
        "threads": subject.threads,
    }
    content = {
        "classifier": {setting: model},
        "model_config": {"base": None},
        "default_model": "base",
        "categories": [{"name": name, "model_scores": [{"model": "base"}]} for name in categories],
        "embedding_rules": [
            {"category": category, "candidates": [example]}
            for category, example in zip(categories, examples, strict=False)
        ],
        "router": {"deadline_ms": DEADLINE_MS, "text": {"max_tokens": max(subject.tokens + 2, 16)}},
    }
    return yaml.safe_dump(content)
