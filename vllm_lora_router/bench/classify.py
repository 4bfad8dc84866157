"""How fast a domain model classifies, alone and under load, as the server would run it."""

import asyncio
import platform
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_lora_router.bench.load import Ask, Load, closed_loop, open_loop, percentile
from vllm_lora_router.bench.shapes import LABELS, SHAPES, word, write_model
from vllm_lora_router.config import load
from vllm_lora_router.config.base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.values import Query

# Nothing is late: what is measured is how long it takes, not what a deadline cuts off.
DEADLINE_MS = 10_000
CONFIG = """\
classifier:
  category_model: {{model_id: {folder}, device: {device}}}
model_config: {{base: }}
default_model: base
categories:
{categories}
router: {{deadline_ms: {deadline_ms}, text: {{max_tokens: {max_tokens}}}}}
"""


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds."""

    device: str
    model: str
    tokens: int
    load: str  # such as "8 callers", "one at a time", "open, 120/s"
    p50: float
    p95: float
    p99: float
    per_second: float
    batch: float  # texts a batch, on average
    lag_p99: float  # of the event loop
    unanswered: int  # late, or too much to do


def measure(
    model: str,
    device: str,
    tokens: int,
    callers: Sequence[int],
    *,
    seconds: float,
    batch_ms: float,
    shares: Sequence[float] = (0.5, 0.8),
) -> Iterator[Row]:
    """The figures of one model on one device for texts of one length, each as soon as it is known.

    Args:
        model: a name of `SHAPES`, whose weights are random, or a folder with a sequence classifier.
        tokens: of each text, special ones not counted.
        batch_ms: what a batch may take.
        shares: of the greatest throughput, at which questions come by themselves.
    """
    with tempfile.TemporaryDirectory() as folder:
        router = _router(model, device, Path(folder), tokens)
        router.classifiers.scored["domain"].batcher.budget_s = batch_ms / 1000
        yield from _rows(router, model, device, tokens, callers, seconds, shares)


def _rows(
    router: Router,
    model: str,
    device: str,
    tokens: int,
    callers: Sequence[int],
    seconds: float,
    shares: Sequence[float],
) -> Iterator[Row]:
    scored = router.classifiers.scored["domain"]
    draw = random.Random(0)
    lost = 0

    def text() -> str:  # never the same: what was classified before is not classified again
        return " ".join(word(draw.randrange(10**6)) for _ in range(tokens))

    async def ask(question: str) -> None:
        nonlocal lost
        plan = await router.plan([Query(question, (question,))])
        lost += plan.steps[0].failure is not None

    async def alone(question: str) -> None:
        """As a server would that classifies one text after the other."""
        async with one:
            await asyncio.wrap_future(scored.batcher.worker.submit(lambda: scored.decide([question])))

    one = asyncio.Lock()

    def run(load: Any, what: str, asked: Ask = ask) -> tuple[Row, Load]:
        nonlocal lost
        lost = 0
        before = (scored.batcher.done.batches, scored.batcher.done.texts)
        found: Load = asyncio.run(load)
        batches = scored.batcher.done.batches - before[0]
        batch = (scored.batcher.done.texts - before[1]) / batches if batches else 1.0
        p50, p95, p99 = (round(found.percentile(percent), 2) for percent in (50, 95, 99))
        rate, lag = round(found.per_second, 1), round(percentile(found.lag_ms, 99), 2)
        return Row(device, model, tokens, what, p50, p95, p99, rate, round(batch, 1), lag, lost), found

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


def _router(model: str, device: str, folder: Path, tokens: int) -> Router:
    if model in SHAPES:
        write_model(model, folder / "model")
        categories: Sequence[str] = LABELS
        source = folder / "model"
    else:
        from vllm_lora_router.classifiers.domain import read_labels

        source = Path(model).resolve()
        (folder / "config.yaml").write_text(_config(source, device, ["all"], tokens))
        categories = read_labels(load(folder / "config.yaml"))
    (folder / "config.yaml").write_text(_config(source, device, categories, tokens))
    loaded = load(folder / "config.yaml")
    return Router.build(loaded, served_base(loaded))


def _config(folder: Path, device: str, categories: Sequence[str], tokens: int) -> str:
    lines = (f'  - {{name: "{name}", model_scores: [{{model: base}}]}}' for name in categories)
    return CONFIG.format(
        folder=folder,
        device=device,
        categories="\n".join(lines),
        deadline_ms=DEADLINE_MS,
        max_tokens=max(tokens + 2, 16),
    )


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    import torch
    import transformers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gpu": gpu,
    }
