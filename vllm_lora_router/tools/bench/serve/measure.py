"""Measure every setup under every load, for each method, prompt length and adapter mix."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from vllm_lora_router.tools.bench.serve.compare import Comparison, Row, Setup
from vllm_lora_router.tools.bench.serve.questions import AdapterMix, Question, QuestionSampler, lengthened
from vllm_lora_router.tools.bench.serve.servers import LITELLM, PLAIN, PROXY, ROUTED, RunningServers
from vllm_lora_router.tools.bench.serve.tables import Cell
from vllm_lora_router.tools.progress import ReportProgress, no_progress

AUTO = "MoM"


@dataclass(frozen=True)
class BenchmarkPlan:
    """The loads of a benchmark and their duration."""

    clients: Sequence[int]  # 1: one request at a time, in pairs; more: concurrent clients
    open: Sequence[float]  # arrival rates, as shares of the highest rate without a router
    prompt_tokens: Sequence[int]
    answer_tokens: int
    mixes: Sequence[AdapterMix]
    pairs: int  # of one client
    rounds: int  # of several clients
    seconds: float  # for each setup in a round
    seed: int = 0


def setups(servers: RunningServers, method: str) -> list[Setup]:
    """Return the available setups; the first is the baseline."""
    by_server = {name: dict(processes) for name, processes in servers.processes.items()}

    def processes_of(*names: str) -> dict:
        return {label: process for name in names for label, process in by_server.get(name, {}).items()}

    available = []
    if PLAIN in servers.urls:
        available.append(Setup("adapter named, no router", PLAIN, None, processes_of(PLAIN)))
    available.append(Setup("adapter named", ROUTED, None, processes_of(ROUTED)))
    available.append(Setup(f"{AUTO} by {method}", ROUTED, AUTO, processes_of(ROUTED)))
    if PROXY in servers.urls:
        available.append(Setup(f"proxy by {method}", PROXY, AUTO, processes_of(PROXY, PLAIN)))
    if LITELLM in servers.urls and method != "keyword":  # LiteLLM routes by embeddings
        available.append(
            Setup("LiteLLM's auto-router", LITELLM, AUTO, processes_of(LITELLM, PLAIN), reports_adapter=False)
        )
    return available


async def measure(
    servers: RunningServers,
    questions: Sequence[Question],
    methods: Sequence[str],
    plan: BenchmarkPlan,
    report_progress: ReportProgress = no_progress,
) -> AsyncIterator[Cell]:
    """Yield a cell for each method, prompt length and mix as it is measured.

    Args:
        servers: the running servers.
        questions: questions whose deciding method and adapter are known.
        methods: the deciding methods, each with questions.
        plan: the loads.
        report_progress: called after each step.
    """
    for method in methods:
        method_questions = [question for question in questions if question.method == method]
        for tokens in plan.prompt_tokens:
            prompts = await lengthened(servers.urls[ROUTED], [question.text for question in method_questions], tokens)
            for mix in plan.mixes:
                sampler = QuestionSampler(method_questions, prompts, mix, plan.seed)
                comparison = Comparison(servers.urls, setups(servers, method), sampler, plan.answer_tokens, plan.seed)
                async with comparison:
                    yield Cell(method, tokens, str(mix), await _rows(comparison, plan, report_progress))


async def _rows(comparison: Comparison, plan: BenchmarkPlan, report_progress: ReportProgress) -> list[Row]:
    rows: list[Row] = []
    highest_rate = 0.0
    for clients in plan.clients:
        if clients == 1:
            rows += await comparison.one_at_a_time(plan.pairs, report_progress)
            continue
        concurrent_rows = await comparison.concurrent(clients, plan.rounds, plan.seconds, report_progress)
        highest_rate = max(highest_rate, concurrent_rows[0].per_second or 0.0)
        rows += concurrent_rows
    for share in plan.open:
        if highest_rate:
            rows += await comparison.open_loop(share * highest_rate, plan.rounds, plan.seconds, report_progress)
    return rows
