"""The demo's own models, as the server runs them: in batches, beside each other, and when one fails."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.tools.bench.classify import Subject, measure
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.held_out import HELD_OUT
from vllm_lora_router.types import Query

from .conftest import ROOT


@pytest.fixture(scope="module")
def router(models: DemoModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """All methods of config/combined.yaml, without a server and with time to spare."""
    folder = tmp_path_factory.mktemp("classifying")
    text = (ROOT / "config/combined.yaml").read_text()
    text = text.replace("models/category_classifier_modernbert-base_model", str(models.domain))
    (folder / "config.yaml").write_text(text.replace("deadline_ms: 100", "deadline_ms: 20000"))
    loaded = load(folder / "config.yaml")
    yield Router.build(loaded, served_base(loaded))


def texts_of_all_lengths(count: int) -> list[str]:
    draw = random.Random(3)
    words = [
        "blood",
        "law",
        "code",
        "fever",
        "court",
        "python",
        "pain",
        "judge",
        "bug",
        "Größe",
        "量",
        "🩺",
        "the",
        "of",
        "and",
    ]
    some = [" ".join(draw.choices(words, k=draw.randint(1, 400))) for _ in range(count)]
    longest = " ".join(draw.choices(words, k=100_000))
    return [*some, "x", "What causes high blood pressure?", longest, "\ud83d?"]


@pytest.fixture(scope="module")
def with_onnx(models: DemoModels, router: Router, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Router]]:
    """The same, exact and in int8 by ONNX Runtime."""
    folder = tmp_path_factory.mktemp("onnx")
    routers = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLLM_LORA_ROUTER_CACHE", str(models.directory / "cache"))
        for runtime in ("onnx", "onnx-int8"):
            content = yaml.safe_load(router.loaded.file.read_text())
            content["classifier"]["category_model"]["runtime"] = runtime
            content["classifier"].setdefault("embedding_model", {})["runtime"] = runtime
            (folder / "config.yaml").write_text(yaml.safe_dump(content))
            loaded = load(folder / "config.yaml")
            routers.append(Router.build(loaded, served_base(loaded)))
        patched.setattr("subprocess.run", None)  # once exported, a model is never exported again
        loaded = load(folder / "config.yaml")
        Router.build(loaded, served_base(loaded))
    yield routers


@pytest.mark.parametrize("method", ["embedding", "domain"])
def test_onnx_runtime_scores_as_torch_does(router: Router, with_onnx: list[Router], method: Any) -> None:
    exact, _ = (one.classifiers.scored[method] for one in with_onnx)
    right = router.classifiers.scored[method]
    assert (right.runs_on, exact.runs_on) == ("torch, cpu", "ONNX Runtime, cpu")
    texts = texts_of_all_lengths(30)
    expected = right.batcher.worker.run_blocking(lambda: right.decide(texts))
    for text, found, wanted in zip(
        texts, exact.batcher.worker.run_blocking(lambda: exact.decide(texts)), expected, strict=True
    ):
        assert found.scores == pytest.approx(wanted.scores, abs=1e-3), text[:80]


@pytest.mark.parametrize("method", ["embedding", "domain"])
def test_in_int8_questions_find_the_same_category(router: Router, with_onnx: list[Router], method: Any) -> None:
    _, int8 = (one.classifiers.scored[method] for one in with_onnx)
    assert int8.runs_on == "ONNX Runtime int8, cpu"
    right = router.classifiers.scored[method]
    questions = [question for of_label in HELD_OUT.values() for question in of_label]
    expected = right.batcher.worker.run_blocking(lambda: right.decide(questions))
    asked = int8.batcher.worker.run_blocking(lambda: int8.decide(questions))
    same = sum(found.category == wanted.category for found, wanted in zip(asked, expected, strict=True))
    assert same >= 0.95 * len(questions)


@pytest.mark.parametrize("method", ["embedding", "domain"])
def test_a_text_scores_in_a_batch_as_it_does_alone(router: Router, method: Any) -> None:
    scored = router.classifiers.scored[method]
    texts = texts_of_all_lengths(60)
    together = scored.batcher.worker.run_blocking(lambda: scored.decide(texts))
    for text, found in zip(texts, together, strict=True):
        (alone,) = scored.batcher.worker.run_blocking(lambda text=text: scored.decide([text]))
        assert found.category == alone.category and found.accepted == alone.accepted
        assert found.scores == pytest.approx(alone.scores, abs=1e-3)


@pytest.mark.alone
async def test_questions_that_come_together_go_together(router: Router) -> None:
    scored = router.classifiers.scored["domain"]
    before = (scored.batcher.done.batches, scored.batcher.done.texts)
    questions = [question for of_label in HELD_OUT.values() for question in of_label]
    plans = await asyncio.gather(*(router.plan([Query(question, (question,))]) for question in questions))
    assert all(plan.reason in ("routed", "below_threshold") for plan in plans)
    asked = scored.batcher.done.texts - before[1]
    assert 0 < scored.batcher.done.batches - before[0] < asked
    # And are not classified again.
    await asyncio.gather(*(router.plan([Query(question, (question,))]) for question in questions))
    assert scored.batcher.done.texts - before[1] == asked


@pytest.mark.alone
async def test_a_model_that_runs_out_of_memory_loses_that_batch_and_no_request(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = router.classifiers.scored["domain"]
    scorer: Any = scored.scorer
    forward, left = scorer.score, 1

    def score(texts: Sequence[str]) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(texts)

    monkeypatch.setattr(scorer, "score", score)
    first, second = "Is the lease void after the flood?", "Is the lease void after the fire?"
    plan = await router.plan([Query(first, (first,))])
    assert (plan.reason, plan.steps[-1].failure) == ("error", "error")
    plan = await router.plan([Query(second, (second,))])
    assert plan.steps[-1].failure is None and scored.batcher.done.failed == 1


@pytest.mark.alone
async def test_a_forward_pass_that_never_returns_costs_a_request_its_deadline_and_nobody_else_anything(
    models: DemoModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_lora_router.classifiers.models.worker.STUCK_S", 0.5)
    text = (ROOT / "config/domain.yaml").read_text()
    file = tmp_path / "config.yaml"
    file.write_text(text.replace("models/category_classifier_modernbert-base_model", str(models.domain)))
    loaded = load(file)
    base = served_base(loaded)
    router = Router.build(loaded, base)
    scorer: Any = router.classifiers.scored["domain"].scorer
    go = threading.Event()
    monkeypatch.setattr(scorer, "score", lambda texts: go.wait(30))
    began = time.perf_counter()
    plan = await router.plan([Query("What causes fever?", ("What causes fever?",))])
    assert plan.reason == "timeout" and time.perf_counter() - began < 1
    await asyncio.sleep(0.6)
    began = time.perf_counter()
    plan = await router.plan([Query("What causes a cough?", ("What causes a cough?",))])
    assert plan.reason == "error" and "has not returned" in (plan.steps[0].error or "")
    assert time.perf_counter() - began < 0.05
    # The next configuration has a thread and a model of its own.
    after = await asyncio.to_thread(Router.build, loaded, base, router)
    plan = await after.plan([Query("What causes a rash?", ("What causes a rash?",))])
    assert plan.steps[0].failure is None
    go.set()


@pytest.mark.alone
def test_the_benchmark_measures_what_the_server_runs() -> None:
    rows = list(measure(Subject("MiniLM", "cpu", "torch", 16), [1, 8], seconds=0.5, batch_ms=50))
    assert [row.load for row in rows][:3] == ["1 caller", "8 callers", "8 callers, one at a time"]
    assert [row.load.partition(",")[0] for row in rows][3:] == ["open", "open"]
    lone, several, in_turn = rows[:3]
    assert lone.batch == 1 and several.batch > 1 and in_turn.batch == 1
    assert all(0 < row.p50 <= row.p95 <= row.p99 and row.per_second > 1 and row.unanswered == 0 for row in rows)
