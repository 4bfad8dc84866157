"""The short form of launch/bench.sh: routing by keyword costs no more than we say."""

from vllm_lora_router.bench.__main__ import MEASURED, bench_server
from vllm_lora_router.bench.pairs import measure
from vllm_lora_router.demo.build import DemoModels

from .conftest import START_SECONDS


def test_routing_by_keyword_adds_at_most_a_millisecond(models: DemoModels) -> None:
    _, question, adapter = MEASURED[0]
    with bench_server(models) as server:
        server.wait(START_SECONDS)
        difference = measure(server.url, question, adapter, 300).difference
    # Another process may take the cores for a while: it fails when 300 pairs say that it is more.
    assert difference.low <= 1.0, difference
