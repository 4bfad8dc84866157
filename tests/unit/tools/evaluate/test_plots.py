"""What other thresholds would give, and an evaluation as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.evaluate import evaluate
from vllm_lora_router.tools.evaluate.plots import plot
from vllm_lora_router.tools.evaluate.sweep import sweeps
from vllm_lora_router.types import Plan

from .conftest import answer, plan, step

if TYPE_CHECKING:
    from vllm_lora_router.tools.evaluate.outcome import Answer


def test_a_lower_threshold_covers_more_and_is_less_precise() -> None:
    answers = [
        answer("legal", "legal", 0.9),
        answer("legal", "legal", 0.8),
        answer("legal", "medical", 0.8),
        answer(None, None, 0.6, guess="legal"),
        answer("medical", None, 0.3, guess="medical"),
    ]
    (swept,) = sweeps(answers)
    assert swept.method == "domain"
    assert swept.thresholds.tolist() == [0.9, 0.8, 0.6, 0.3]
    assert swept.coverage.tolist() == [0.25, 0.75, 0.75, 1.0]
    assert swept.precision.tolist() == pytest.approx([1.0, 2 / 3, 2 / 4, 3 / 5])


def test_each_method_is_swept_by_itself_and_rules_that_match_are_not() -> None:
    answers: list[Answer] = [
        answer("legal", "legal", 0.9),
        answer("legal", "legal", 0.4, guessed_by="embedding", scale="similarity"),
        answer("legal", "legal", 1.0, guessed_by="keyword", scale="rule"),
        answer("legal", None, 0.0, guess=None, guessed_by=None, scale=None),
    ]
    assert [swept.method for swept in sweeps(answers)] == ["domain", "embedding"]


class Fixed:
    """Says the same of every text."""

    at_once, deadline_ms, name = 4, None, "[fixed]_$x$"

    def __init__(self, said: Plan) -> None:
        self.said = said

    async def plan(self, text: str) -> Plan:
        return self.said


@pytest.mark.parametrize("probable", [True, False])
async def test_pictures_are_written_of_what_there_is(tmp_path: Path, probable: bool) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    of = step("legal") if probable else step("legal", 1.0, method="keyword", scale="rule")
    examples = [Example("a", "legal"), Example("b", "medical"), Example("c", None)]
    files = plot(await evaluate(Fixed(plan(of)), examples, small_changes=0), tmp_path / "new" / "plots")
    names = ["confusion.png", "reliability.png", "thresholds.png"] if probable else ["confusion.png"]
    assert [file.name for file in files] == names
    assert {file.read_bytes()[:4] for file in files} == {b"\x89PNG"}
