"""Plots of an evaluation, and the threshold sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.evaluate import evaluate
from vllm_lora_router.tools.evaluate.plots import plot, sweep_thresholds
from vllm_lora_router.types import Plan

from .conftest import outcome, plan, step

if TYPE_CHECKING:
    from vllm_lora_router.tools.evaluate.outcome import Outcome


def test_lower_threshold_has_higher_coverage_and_lower_precision() -> None:
    outcomes = [
        outcome("legal", "legal", 0.9),
        outcome("legal", "legal", 0.8),
        outcome("legal", "medical", 0.8),
        outcome(None, None, 0.6, guess="legal"),
        outcome("medical", None, 0.3, guess="medical"),
    ]
    (sweep,) = sweep_thresholds(outcomes)
    assert sweep.method == "domain"
    assert sweep.thresholds.tolist() == [0.9, 0.8, 0.6, 0.3]
    assert sweep.coverage.tolist() == [0.25, 0.75, 0.75, 1.0]
    assert sweep.precision.tolist() == pytest.approx([1.0, 2 / 3, 2 / 4, 3 / 5])


def test_each_method_with_scores_has_its_own_sweep() -> None:
    outcomes: list[Outcome] = [
        outcome("legal", "legal", 0.9),
        outcome("legal", "legal", 0.4, guess_method="embedding", scale="similarity"),
        outcome("legal", "legal", 1.0, guess_method="keyword", scale="rule"),
        outcome("legal", None, 0.0, guess=None, guess_method=None, scale=None),
    ]
    assert [sweep.method for sweep in sweep_thresholds(outcomes)] == ["domain", "embedding"]


class ConstantTarget:
    """A target that returns the same plan for every text."""

    concurrency, deadline_ms, name = 4, None, "[fixed]_$x$"

    def __init__(self, constant: Plan) -> None:
        self.constant = constant

    async def plan(self, text: str) -> Plan:
        return self.constant


@pytest.mark.parametrize("has_scores", [True, False])
async def test_plots_of_available_scores_are_written(tmp_path: Path, has_scores: bool) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    classification = step("legal") if has_scores else step("legal", 1.0, method="keyword", scale="rule")
    examples = [Example("a", "legal"), Example("b", "medical"), Example("c", None)]
    evaluation = await evaluate(ConstantTarget(plan(classification)), examples, small_changes=0)
    files = plot(evaluation, tmp_path / "new" / "plots")
    names = ["confusion.png", "reliability.png", "thresholds.png"] if has_scores else ["confusion.png"]
    assert [file.name for file in files] == names
    assert {file.read_bytes()[:4] for file in files} == {b"\x89PNG"}
