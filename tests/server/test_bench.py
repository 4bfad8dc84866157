"""The short form of launch/bench.sh: a server with the router, one without it, and a proxy in front of the latter."""

from collections.abc import Mapping, Sequence

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_lora_router.tools.bench.serve import settings
from vllm_lora_router.tools.bench.serve.compare import Row
from vllm_lora_router.tools.bench.serve.measure import BenchmarkPlan, measure
from vllm_lora_router.tools.bench.serve.questions import AdapterMix, routed_questions
from vllm_lora_router.tools.bench.serve.servers import PLAIN, ROUTED

from .conftest import ComparedServers

METHODS = ("keyword", "embedding")
SETUPS = ("adapter named, no router", "adapter named", "MoM by {method}", "proxy by {method}")
MOST_MS = {"keyword": 1.0, "embedding": 2.0}


def counter(url: str, name: str) -> int:
    """Return the sum of a counter's series."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text)
    return int(sum(sample.value for family in families for sample in family.samples if sample.name == name))


async def benchmark(compared: ComparedServers, plan: BenchmarkPlan) -> Mapping[str, Sequence[Row]]:
    """Return the rows of each method."""
    compared.routed.configure(compared.bench_config)
    questions = await routed_questions(compared.routed.url, settings.held_out_questions(), METHODS)
    assert {question.method for question in questions} == set(METHODS)
    return {cell.method: cell.rows async for cell in measure(compared.running, questions, METHODS, plan)}


async def test_every_setup_of_the_benchmark_answers_every_request_by_the_right_adapter(
    compared: ComparedServers,
) -> None:
    """One engine request per client request, and one decision per routed request."""
    plan = BenchmarkPlan([1, 4], [], [0], 1, [AdapterMix(0.0)], pairs=10, rounds=1, seconds=0.5)
    engines = {name: compared.running.urls[name] for name in (PLAIN, ROUTED)}
    names = ("vllm:request_success_total", "lora_router_decisions_total")
    before = {(server, name): counter(url, name) for server, url in engines.items() for name in names}
    loads = counter(compared.routed.url, "lora_router_adapter_loads_total")
    rows_of = await benchmark(compared, plan)
    more = {(server, name): counter(engines[server], name) - count for (server, name), count in before.items()}
    assert rows_of.keys() == set(METHODS)
    for method, rows in rows_of.items():
        assert [row.setup for row in rows] == [setup.format(method=method) for setup in SETUPS] * 2
        # The number in front of a question changes the category of some questions for the static encoder.
        most_others = 0.0 if method == "keyword" else 0.1
        wrong = [
            row for row in rows if not row.succeeded or row.failed or row.other_adapter > most_others * row.succeeded
        ]
        assert not wrong, [
            (row.load, row.setup, row.succeeded, row.failed, row.other_adapter, row.errors) for row in wrong
        ]
    # Beside the measured requests each setup has 20 to warm up, for each method.
    sent = dict.fromkeys(SETUPS, 20 * len(METHODS))
    for rows in rows_of.values():
        for setup, row in zip(SETUPS * 2, rows, strict=True):
            sent[setup] += row.succeeded
    assert more[PLAIN, names[0]] == sent[SETUPS[0]] + sent[SETUPS[3]]
    assert more[ROUTED, names[0]] == sent[SETUPS[1]] + sent[SETUPS[2]]
    assert more[ROUTED, names[1]] == sent[SETUPS[2]]
    assert counter(compared.routed.url, "lora_router_adapter_loads_total") - loads <= len(compared.adapters)


async def test_routing_costs_less_than_a_proxy(compared: ComparedServers, full: bool) -> None:
    if not full:
        pytest.skip("measures times, so only in the long form: bash launch/faults.sh")
    plan = BenchmarkPlan([1, 16], [], [0], 1, [AdapterMix(0.0)], pairs=600, rounds=6, seconds=1.0)
    for method, rows in (await benchmark(compared, plan)).items():
        assert not [row for row in rows if row.failed], rows
        alone, together = rows[:4], rows[4:]
        routed, proxied = alone[2].first_more_here, alone[3].first_more
        print(f"{method}: routed {routed}, by a proxy {proxied}")
        assert routed is not None and proxied is not None and routed.high <= MOST_MS[method]
        assert routed.value < proxied.value
        ratio = together[2].rate_ratio_here
        assert ratio is not None and ratio.value >= 0.8, together
