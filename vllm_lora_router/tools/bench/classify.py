"""Measure how fast a domain model or an encoder classifies, alone and under load, as the server runs it."""

import asyncio
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vllm_lora_router.classifiers.model_classifier import ModelClassifier
from vllm_lora_router.config import load
from vllm_lora_router.config.schema import Runtime
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.tools.bench.gil import measure_gil
from vllm_lora_router.tools.bench.load import LoadResult, closed_loop, open_loop, percentile
from vllm_lora_router.tools.bench.shapes import LABELS, SHAPES, word, write_model
from vllm_lora_router.types import Query

# Long enough that no request is late: the benchmark measures time, not the effect of a deadline.
DEADLINE_MS = 10_000
# Candidates of the embedding rules.
EXAMPLES = ("a question about law", "a question about health", "a question about code", "something else")


@dataclass(frozen=True)
class ModelSetup:
    """The model, device and text length of one measurement."""

    model: str  # a name in `SHAPES` (random weights), or the folder of a sequence classifier or encoder
    device: str
    runtime: Runtime
    tokens: int  # in each text, without special tokens
    threads: int = 1  # on a CPU

    def __str__(self) -> str:
        return f"{self.model} on {self.device}, {self.runtime}, {self.tokens} tokens a text"


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds."""

    device: str
    model: str
    runtime: str  # the runtime in use
    tokens: int
    load: str  # for example "8 callers", "one at a time", "open, 120/s"
    p50: float
    p95: float
    p99: float
    per_second: float
    batch: float  # mean texts in a batch
    lag_p99: float  # lateness of the event loop
    gil_ms: float | None  # time a text holds Python's interpreter lock; None without the package gilknocker
    failed: int  # texts that timed out or were refused


def measure(
    setup: ModelSetup,
    callers: Sequence[int],
    *,
    seconds: float,
    batch_ms: float,
    shares: Sequence[float] = (0.5, 0.8),
) -> Iterator[Row]:
    """Yield the figures of one model as they are measured.

    Args:
        callers: numbers of concurrent clients, one measurement each.
        batch_ms: maximum duration of a batch, in milliseconds.
        shares: arrival rates of the open loop, as shares of the highest throughput.
    """
    with tempfile.TemporaryDirectory() as folder:
        router = _router(setup, Path(folder))
        classifier = next(iter(router.classifiers.model_classifiers.values()))
        classifier.batcher.budget_s = batch_ms / 1000
        yield from _rows(router, classifier, setup, callers, seconds, shares)


def _rows(
    router: Router,
    classifier: ModelClassifier,
    setup: ModelSetup,
    callers: Sequence[int],
    seconds: float,
    shares: Sequence[float],
) -> Iterator[Row]:
    draw = random.Random(0)
    failed = 0

    def text() -> str:  # every text is new, because results are cached
        return " ".join(word(draw.randrange(10**6)) for _ in range(setup.tokens))

    async def ask(question: str) -> None:
        nonlocal failed
        plan = await router.plan([Query(question, (question,))])
        failed += plan.steps[0].failure is not None

    async def alone(question: str) -> None:
        """Classify one text after the other, without batches."""
        async with lock:
            await asyncio.wrap_future(classifier.batcher.worker.submit(lambda: classifier.decide([question])))

    lock = asyncio.Lock()

    def run(load: Any, label: str) -> tuple[Row, LoadResult]:
        nonlocal failed
        failed = 0
        before = (classifier.batcher.stats.batches, classifier.batcher.stats.texts)
        with measure_gil() as contention:
            result: LoadResult = asyncio.run(load)
        batches = classifier.batcher.stats.batches - before[0]
        batch = (classifier.batcher.stats.texts - before[1]) / batches if batches else 1.0
        texts = len(result.times_ms)
        row = Row(
            setup.device,
            setup.model,
            classifier.runs_on,
            setup.tokens,
            label,
            p50=round(result.percentile(50), 2),
            p95=round(result.percentile(95), 2),
            p99=round(result.percentile(99), 2),
            per_second=round(result.per_second, 1),
            batch=round(batch, 1),
            lag_p99=round(percentile(result.lag_ms, 99), 2),
            gil_ms=None if contention.share is None else round(contention.share * result.seconds * 1000 / texts, 3),
            failed=failed,
        )
        return row, result

    asyncio.run(closed_loop(ask, text, 4, 0.5))  # warm up
    peak = 0.0
    for count in callers:
        row, result = run(closed_loop(ask, text, count, seconds), f"{count} caller{'s' if count > 1 else ''}")
        peak = max(peak, result.per_second)
        yield row
    row, _ = run(closed_loop(alone, text, max(callers), seconds), f"{max(callers)} callers, one at a time")
    yield row
    for share in shares:
        rate = peak * share
        row, _ = run(open_loop(ask, text, rate, seconds), f"open, {rate:.0f}/s ({share:.0%})")
        yield row


def _router(setup: ModelSetup, folder: Path) -> Router:
    source: str | Path = Path(setup.model).resolve() if Path(setup.model).is_dir() else setup.model
    if setup.model in SHAPES:
        source = folder / "model"
        write_model(setup.model, source)
    file = folder / "config.yaml"
    if not isinstance(source, Path) or not _is_classifier(source):
        file.write_text(_config("embedding_model", source, setup, LABELS, EXAMPLES))
    else:
        from vllm_lora_router.classifiers.labels import read_labels

        file.write_text(_config("category_model", source, setup, ["all"]))
        file.write_text(_config("category_model", source, setup, read_labels(load(file))))
    loaded = load(file)
    return Router.build(loaded, served_base(loaded))


def _is_classifier(folder: Path) -> bool:
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or ()
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def _config(
    setting: str, source: str | Path, setup: ModelSetup, categories: Sequence[str], examples: Sequence[str] = ()
) -> str:
    model = {
        "model_id": str(source),
        "device": setup.device,
        "runtime": setup.runtime,
        "threads": setup.threads,
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
        "router": {"deadline_ms": DEADLINE_MS, "text": {"max_tokens": max(setup.tokens + 2, 16)}},
    }
    return yaml.safe_dump(content)
