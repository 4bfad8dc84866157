"""The whole comparison: every way under every load, for each kind of question, length and mix."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from vllm_lora_router.tools.bench.serve.compare import Comparison, Row, Way
from vllm_lora_router.tools.bench.serve.questions import Asking, Mix, Question, longer
from vllm_lora_router.tools.bench.serve.servers import LITELLM, PLAIN, PROXY, ROUTED, Fleet
from vllm_lora_router.tools.bench.serve.tables import Cell
from vllm_lora_router.tools.progress import Told

AUTO = "MoM"


@dataclass(frozen=True)
class Extent:
    """What is measured, and for how long."""

    callers: Sequence[int]  # 1: alone, in pairs; more: as many at the same time
    open: Sequence[float]  # shares of what the most callers get without a router, at which questions come by themselves
    prompt_tokens: Sequence[int]
    answer_tokens: int
    mixes: Sequence[Mix]
    pairs: int  # of one caller
    rounds: int  # of more
    seconds: float  # that each way has in a round
    seed: int = 0


def ways(fleet: Fleet, method: str) -> list[Way]:
    """The ways to be served that there are; the first is what the others are compared with."""
    taken = {name: dict(own) for name, own in fleet.processes.items()}

    def of(*servers: str) -> dict:
        return {name: process for server in servers for name, process in taken.get(server, {}).items()}

    found = []
    if PLAIN in fleet.urls:
        found.append(Way("adapter named, no router", PLAIN, None, of(PLAIN)))
    found.append(Way("adapter named", ROUTED, None, of(ROUTED)))
    found.append(Way(f"{AUTO} by {method}", ROUTED, AUTO, of(ROUTED)))
    if PROXY in fleet.urls:
        found.append(Way(f"proxy by {method}", PROXY, AUTO, of(PROXY, PLAIN)))
    if LITELLM in fleet.urls and method != "keyword":  # it routes by embeddings
        found.append(Way("LiteLLM's auto-router", LITELLM, AUTO, of(LITELLM, PLAIN), tells=False))
    return found


async def measure(
    fleet: Fleet,
    questions: Sequence[Question],
    methods: Sequence[str],
    extent: Extent,
    told: Told = lambda what, done, of: None,
) -> AsyncIterator[Cell]:
    """A cell for each method, length and mix, each as soon as it is known.

    Args:
        methods: that decide; of each there are questions.
    """
    for method in methods:
        own = [question for question in questions if question.method == method]
        for tokens in extent.prompt_tokens:
            said = await longer(fleet.urls[ROUTED], [question.text for question in own], tokens)
            for mix in extent.mixes:
                asking = Asking(own, said, mix, extent.seed)
                comparison = Comparison(fleet.urls, ways(fleet, method), asking, extent.answer_tokens, extent.seed)
                async with comparison:
                    yield Cell(method, tokens, str(mix), await _rows(comparison, extent, told))


async def _rows(comparison: Comparison, extent: Extent, told: Told) -> list[Row]:
    rows: list[Row] = []
    most = 0.0
    for callers in extent.callers:
        if callers == 1:
            rows += await comparison.alone(extent.pairs, told)
            continue
        found = await comparison.callers(callers, extent.rounds, extent.seconds, told)
        most = max(most, found[0].per_second or 0.0)
        rows += found
    for share in extent.open:
        if most:
            rows += await comparison.arriving(share * most, extent.rounds, extent.seconds, told)
    return rows
