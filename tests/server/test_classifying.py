"""The demo's classifiers as the server runs them: in batches, concurrently, and when one fails."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_lora_router.config import LoadedConfig, load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.tools.bench.classify import ModelSetup, measure
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.held_out import HELD_OUT
from vllm_lora_router.types import Query

from .conftest import HANG_GUARD_S, ROOT


@pytest.fixture(scope="module")
def router(models: DemoModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """All methods of config/combined.yaml, without a server and with a long deadline."""
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
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 400))) for _ in range(count)]
    longest = " ".join(draw.choices(words, k=100_000))
    return [*texts, "x", "What causes high blood pressure?", longest, "\ud83d?"]


@pytest.fixture(scope="module")
def with_onnx(models: DemoModels, router: Router, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Router]]:
    """The same with ONNX Runtime, exact and in int8."""
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
        patched.setattr("subprocess.run", None)  # an exported model is not exported again
        loaded = load(folder / "config.yaml")
        Router.build(loaded, served_base(loaded))
    yield routers


@pytest.mark.parametrize("method", ["embedding", "domain"])
def test_onnx_runtime_scores_as_torch_does(router: Router, with_onnx: list[Router], method: Any) -> None:
    exact, _ = (onnx_router.classifiers.model_classifiers[method] for onnx_router in with_onnx)
    right = router.classifiers.model_classifiers[method]
    assert (right.runs_on, exact.runs_on) == ("torch, cpu", "ONNX Runtime, cpu")
    texts = texts_of_all_lengths(30)
    expected = right.batcher.worker.run_blocking(lambda: right.decide(texts))
    for text, classification, reference in zip(
        texts, exact.batcher.worker.run_blocking(lambda: exact.decide(texts)), expected, strict=True
    ):
        assert classification.scores == pytest.approx(reference.scores, abs=1e-3), text[:80]


@pytest.mark.parametrize("method", ["embedding", "domain"])
def test_int8_models_find_the_same_categories(router: Router, with_onnx: list[Router], method: Any) -> None:
    _, int8 = (onnx_router.classifiers.model_classifiers[method] for onnx_router in with_onnx)
    assert int8.runs_on == "ONNX Runtime int8, cpu"
    right = router.classifiers.model_classifiers[method]
    questions = [question for of_label in HELD_OUT.values() for question in of_label]
    expected = right.batcher.worker.run_blocking(lambda: right.decide(questions))
    quantized = int8.batcher.worker.run_blocking(lambda: int8.decide(questions))
    same = sum(
        classification.category == reference.category
        for classification, reference in zip(quantized, expected, strict=True)
    )
    assert same >= 0.95 * len(questions)


@pytest.mark.parametrize("method", ["embedding", "domain"])
def test_a_text_scores_the_same_in_a_batch_and_alone(router: Router, method: Any) -> None:
    classifier = router.classifiers.model_classifiers[method]
    texts = texts_of_all_lengths(60)
    together = classifier.batcher.worker.run_blocking(lambda: classifier.decide(texts))
    for text, classification in zip(texts, together, strict=True):
        (alone,) = classifier.batcher.worker.run_blocking(lambda text=text: classifier.decide([text]))
        assert classification.category == alone.category and classification.accepted == alone.accepted
        assert classification.scores == pytest.approx(alone.scores, abs=1e-3)


async def test_concurrent_questions_are_classified_in_batches_and_cached(router: Router) -> None:
    classifier = router.classifiers.model_classifiers["domain"]
    before = (classifier.batcher.stats.batches, classifier.batcher.stats.texts)
    questions = [question for of_label in HELD_OUT.values() for question in of_label]
    plans = await asyncio.gather(*(router.plan([Query(question, (question,))]) for question in questions))
    assert all(plan.reason in ("routed", "below_threshold") for plan in plans)
    classified = classifier.batcher.stats.texts - before[1]
    assert 0 < classifier.batcher.stats.batches - before[0] < classified
    # Their classifications are cached.
    await asyncio.gather(*(router.plan([Query(question, (question,))]) for question in questions))
    assert classifier.batcher.stats.texts - before[1] == classified


async def test_the_event_loop_runs_while_a_batch_is_classified(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass waits for 1,000 iterations of the event loop."""
    classifier = router.classifiers.model_classifiers["domain"]
    scorer: Any = classifier.scorer
    forward, iterations, waited = scorer.score, 0, 0

    async def iterate() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    def score(texts: Sequence[str]) -> Any:
        nonlocal waited
        begin, deadline = iterations, time.monotonic() + 15
        while iterations < begin + 1000 and time.monotonic() < deadline:
            time.sleep(0.001)
        waited = iterations - begin
        return forward(texts)

    monkeypatch.setattr(scorer, "score", score)
    task = asyncio.create_task(iterate())
    question = "May a landlord enter the flat without notice?"
    plan = await router.plan([Query(question, (question,))])
    task.cancel()
    assert plan.steps[-1].failure is None and waited >= 1000


async def test_a_model_that_runs_out_of_memory_fails_only_that_batch(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = router.classifiers.model_classifiers["domain"]
    scorer: Any = classifier.scorer
    forward, failures = scorer.score, 1

    def score(texts: Sequence[str]) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(texts)

    monkeypatch.setattr(scorer, "score", score)
    first, second = "Is the lease void after the flood?", "Is the lease void after the fire?"
    plan = await router.plan([Query(first, (first,))])
    assert (plan.reason, plan.steps[-1].failure) == ("error", "error")
    plan = await router.plan([Query(second, (second,))])
    assert plan.steps[-1].failure is None and classifier.batcher.stats.failed == 1


async def test_a_forward_pass_that_hangs_fails_one_request_at_its_deadline_and_later_ones_without_a_call(
    models: DemoModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_lora_router.classifiers.models.worker.STUCK_S", 0.5)
    text = (ROOT / "config/domain.yaml").read_text()
    config = yaml.safe_load(text.replace("models/category_classifier_modernbert-base_model", str(models.domain)))

    def loaded(deadline_ms: float) -> LoadedConfig:
        config.setdefault("router", {})["deadline_ms"] = deadline_ms
        file = tmp_path / f"{deadline_ms}.yaml"
        file.write_text(yaml.safe_dump(config))
        return load(file)

    base = served_base(loaded(200))
    router = Router.build(loaded(200), base)
    scorer: Any = router.classifiers.model_classifiers["domain"].scorer
    calls: list[Sequence[str]] = []
    end = threading.Event()

    def hang(texts: Sequence[str]) -> Any:
        calls.append(texts)
        end.wait(HANG_GUARD_S)

    monkeypatch.setattr(scorer, "score", hang)
    plan = await router.plan([Query("What causes fever?", ("What causes fever?",))])
    assert plan.reason == "timeout"
    await asyncio.sleep(0.6)
    plan = await router.plan([Query("What causes a cough?", ("What causes a cough?",))])
    assert plan.reason == "error" and "has not returned" in (plan.steps[0].error or "")
    assert len(calls) == 1
    # The next configuration has its own thread and model.
    following = await asyncio.to_thread(Router.build, loaded(60_000), base, router)
    plan = await following.plan([Query("What causes a rash?", ("What causes a rash?",))])
    assert plan.steps[0].failure is None
    end.set()


def test_the_benchmark_measures_every_load() -> None:
    rows = list(measure(ModelSetup("MiniLM", "cpu", "torch", 16), [1, 8], seconds=0.5, batch_ms=50))
    assert [row.load for row in rows][:3] == ["1 caller", "8 callers", "8 callers, one at a time"]
    assert [row.load.partition(",")[0] for row in rows][3:] == ["open", "open"]
    lone, several, in_turn = rows[:3]
    assert lone.batch == 1 and several.batch > 1 and in_turn.batch == 1
    assert all(0 < row.p50 <= row.p95 <= row.p99 and row.per_second > 1 and row.failed == 0 for row in rows)
