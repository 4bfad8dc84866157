"""Latency of routing plans, one prompt at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from vllm_lora_router.tools.evaluate.targets import Target

MAX_PROMPTS = 200


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of sequential plans; for a server, including the network."""

    prompts: int
    cached: int  # prompts with a cached result, which are not timed
    p50_ms: float | None
    p95_ms: float | None
    deadline_ms: float | None
    late: int | None  # plans whose methods together exceeded the deadline; None: the deadline is unknown


async def measure_latency(
    target: Target, texts: Sequence[str], seed: int = 0, on_plan: Callable[[], None] = lambda: None
) -> Latency:
    """Measure the latency of up to 200 different texts, sampled by the seed.

    Results are cached afterwards, so measure latency before anything else.

    Raises:
        TargetError: The target does not respond.
    """
    unique = list(dict.fromkeys(texts))
    plan_ms: list[float] = []
    methods_ms: list[float] = []
    cached = 0
    for text in Random(seed).sample(unique, min(MAX_PROMPTS, len(unique))):
        start = time.perf_counter()
        plan = await target.plan(text)
        duration_ms = (time.perf_counter() - start) * 1000
        on_plan()
        if any(step.classification is not None and step.classification.cached for step in plan.steps):
            cached += 1
            continue
        plan_ms.append(duration_ms)
        methods_ms.append(sum(step.duration_ms for step in plan.steps if step.method != "mcp"))
    deadline_ms = target.deadline_ms
    late = None if deadline_ms is None else sum(duration_ms > deadline_ms for duration_ms in methods_ms)
    p50, p95 = (float(value) for value in np.quantile(plan_ms, (0.5, 0.95))) if plan_ms else (None, None)
    return Latency(len(plan_ms), cached, p50, p95, deadline_ms, late)
