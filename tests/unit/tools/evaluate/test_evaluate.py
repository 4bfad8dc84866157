"""Evaluation of a configuration on labelled prompts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.tools.evaluate.evaluate import evaluate

from .conftest import EXAMPLES

if TYPE_CHECKING:
    from .conftest import Configure

pytest.importorskip("sklearn")


async def test_configuration_is_evaluated_on_every_prompt(configure: Configure) -> None:
    reports: list[tuple[str, int, int]] = []
    evaluation = await evaluate(configure(), EXAMPLES, report_progress=lambda *report: reports.append(report))
    assert evaluation.accuracy.value == pytest.approx(4 / 6)
    assert {outcome.text: outcome.chosen for outcome in evaluation.outcomes if not outcome.correct} == {
        "my knee hurts": None,
        "The court has a cough to complain of": "medical",
    }
    assert {result.method: result.prompts for result in evaluation.metrics.methods} == {"keyword": 4, None: 2}
    assert evaluation.metrics.reliability is None  # a rule has no probability
    assert evaluation.failures == {} and len(evaluation.versions) == 1
    assert [subset.name for subset in evaluation.scripts] == ["latin"]
    assert reports[-1][0] == "small changes"
    assert {task: (done, total) for task, done, total in reports} == {
        "latency": (6, 6),
        "prompts": (6, 6),
        "small changes": (reports[-1][2], reports[-1][2]),
    }


async def test_same_seed_gives_the_same_evaluation(configure: Configure) -> None:
    target = configure()
    evaluations = [await evaluate(target, EXAMPLES, small_changes=3, seed=seed) for seed in (1, 1, 2)]
    latency = evaluations[0].latency
    first, same, other = (dataclasses.replace(evaluation, latency=latency) for evaluation in evaluations)
    assert first == same != other


async def test_without_small_changes_robustness_is_not_measured(configure: Configure) -> None:
    evaluation = await evaluate(configure(), EXAMPLES, small_changes=0)
    assert evaluation.robustness is None
