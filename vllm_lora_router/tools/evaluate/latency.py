"""How long a plan takes, asked for one prompt at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from vllm_lora_router.tools.evaluate.targets import Subject

AT_MOST = 200  # prompts


@dataclass(frozen=True, slots=True)
class Latency:
    """Of plans one after the other; of a server with the way there and back."""

    prompts: int
    cached: int  # prompts that were answered before, and are left out
    p50_ms: float | None
    p95_ms: float | None
    deadline_ms: float | None
    late: int | None  # plans whose methods together took longer than the deadline; None: it is not known


async def latency(
    subject: Subject, texts: Sequence[str], seed: int = 0, told: Callable[[], None] = lambda: None
) -> Latency:
    """Of up to 200 different texts, drawn by the seed; who measures anything else does so later: answers are kept.

    Raises:
        SubjectError: the subject does not answer.
    """
    different = list(dict.fromkeys(texts))
    took: list[float] = []
    methods: list[float] = []
    cached = 0
    for text in Random(seed).sample(different, min(AT_MOST, len(different))):
        began = time.perf_counter()
        plan = await subject.plan(text)
        ms = (time.perf_counter() - began) * 1000
        told()
        if any(step.classification is not None and step.classification.cached for step in plan.steps):
            cached += 1
            continue
        took.append(ms)
        methods.append(sum(step.duration_ms for step in plan.steps if step.method != "mcp"))
    deadline = subject.deadline_ms
    late = None if deadline is None else sum(ms > deadline for ms in methods)
    p50, p95 = (float(value) for value in np.quantile(took, (0.5, 0.95))) if took else (None, None)
    return Latency(len(took), cached, p50, p95, deadline, late)
