"""Latency of routing plans."""

from msgspec import structs

from vllm_lora_router.tools.evaluate.latency import MAX_PROMPTS, measure_latency
from vllm_lora_router.types import Plan

from .conftest import plan, step


class SlowTarget:
    """A target that reports durations, and cached results for some texts."""

    name, concurrency, deadline_ms = "slow", 1, 2.0

    def __init__(self, cached: set[str]) -> None:
        self.cached = cached
        self.texts: list[str] = []

    async def plan(self, text: str) -> Plan:
        self.texts.append(text)
        duration_ms = 3.0 if text == "late" else 1.0
        return plan(structs.replace(step("legal", cached=text in self.cached), duration_ms=duration_ms))


async def test_latency_is_measured_on_unique_texts_without_cached_results() -> None:
    target = SlowTarget({"known", "known too"})
    latency = await measure_latency(target, ["new", "known", "new", "new", "late", "known too"])
    assert sorted(target.texts) == ["known", "known too", "late", "new"]
    assert (latency.prompts, latency.cached, latency.late, latency.deadline_ms) == (2, 2, 1, 2.0)
    assert latency.p50_ms is not None and latency.p95_ms is not None and 0 < latency.p50_ms <= latency.p95_ms
    all_cached = await measure_latency(SlowTarget({"known"}), ["known"])
    assert (all_cached.prompts, all_cached.p50_ms) == (0, None)


async def test_latency_is_measured_on_at_most_200_prompts() -> None:
    target = SlowTarget(set())
    latency = await measure_latency(target, [f"{n}" for n in range(1000)], seed=1)
    assert latency.prompts == len(target.texts) == MAX_PROMPTS
