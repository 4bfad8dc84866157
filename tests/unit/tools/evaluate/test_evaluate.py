"""Labelled prompts through a configuration: agreement, latency, and all that is measured together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from vllm_lora_router.tools.evaluate.evaluate import evaluate
from vllm_lora_router.tools.evaluate.latency import AT_MOST, latency
from vllm_lora_router.tools.evaluate.outcome import answer as answer_of
from vllm_lora_router.tools.evaluate.robustness import Changed, agreement, ask_again, sample, variants
from vllm_lora_router.tools.evaluate.targets import plans
from vllm_lora_router.types import Plan

from .conftest import EXAMPLES, answer, plan, step

if TYPE_CHECKING:
    from .conftest import Configure

pytest.importorskip("sklearn")


async def test_a_configuration_is_measured_on_every_prompt(configure: Configure) -> None:
    told: list[tuple[str, int, int]] = []
    found = await evaluate(configure(), EXAMPLES, told=lambda *progress: told.append(progress))
    assert found.accuracy.value == pytest.approx(4 / 6)
    assert {one.text: one.chosen for one in found.answers if not one.right} == {
        "my knee hurts": None,
        "The court has a cough to complain of": "medical",
    }
    decided = {one.method: one.prompts for one in found.figures.decided}
    assert decided == {"keyword": 4, None: 2}
    assert found.figures.reliability is None  # a rule has no probability
    assert found.failures == {} and len(found.versions) == 1
    assert [one.name for one in found.scripts] == ["latin"]
    assert told[-1][0] == "small changes" and {what: (done, of) for what, done, of in told} == {
        "one at a time": (6, 6),
        "prompts": (6, 6),
        "small changes": (told[-1][2], told[-1][2]),
    }


async def test_the_same_seed_measures_the_same(configure: Configure) -> None:
    subject = configure()
    found = [await evaluate(subject, EXAMPLES, small_changes=3, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (dataclasses.replace(each, latency=found[0].latency) for each in found)
    assert one == again != other


async def test_without_small_changes_none_are_asked(configure: Configure) -> None:
    found = await evaluate(configure(), EXAMPLES, small_changes=0)
    assert found.agreement is None


async def test_keywords_stand_small_changes_but_for_typos_in_them(configure: Configure) -> None:
    subject = configure()
    found = await plans(subject, [example.text for example in EXAMPLES])
    answers = [answer_of(example, one) for example, one in zip(EXAMPLES, found, strict=True)]
    agreed = agreement(await ask_again(subject, answers))
    assert agreed is not None
    kinds = {one.kind: one for one in agreed.kinds}
    assert {kind: one.chosen.value for kind, one in kinds.items() if kind != "typos"} == {
        "lower case": 1.0,
        "upper case": 1.0,
        "politeness": 1.0,
        "a prefix": 1.0,
        "no punctuation": 1.0,
    }
    assert kinds["typos"].chosen.of == 6 and kinds["no punctuation"].chosen.of == 2
    assert agreed.chosen.of == 6


def test_agreement_counts_the_guess_and_the_choice_apart() -> None:
    sure, other = answer("legal", "legal"), answer("legal", "medical", text="other")
    unsure = answer("legal", None, guess="legal")
    found = agreement([Changed(sure, "typos", unsure), Changed(other, "typos", other), Changed(other, "case", sure)])
    assert found is not None
    assert {one.kind: (one.guess.value, one.chosen.value) for one in found.kinds} == {
        "typos": (1.0, 0.5),
        "case": (0.0, 0.0),
    }
    assert (found.guess.value, found.guess.of) == (pytest.approx(2 / 3), 2)
    assert found.chosen.value == pytest.approx(1 / 3)
    assert agreement([]) is None and found.in_scope is None  # all of them are in scope


def test_what_is_in_scope_is_also_said_by_itself() -> None:
    # Which category is the likeliest of a prompt that is of none means little.
    legal, none = answer("legal", "legal"), answer(None, "legal", text="other")
    found = agreement([Changed(legal, "typos", legal), Changed(none, "typos", answer(None, "medical", text="other"))])
    assert found is not None and found.in_scope is not None
    assert (found.guess.value, found.in_scope.guess.value, found.in_scope.guess.of) == (0.5, 1.0, 1)


def test_a_sample_is_drawn_by_the_seed_and_changes_that_change_nothing_are_left_out() -> None:
    answers = [answer("legal", "legal", text=f"text number {n}") for n in range(50)]
    assert sample(answers, 10, 1) == sample(answers, 10, 1) != sample(answers, 10, 2)
    assert sample(answers, 100) == answers
    kinds = [kind for _, kind, _ in variants(answers[:1])]
    assert kinds == ["upper case", "typos", "politeness", "a prefix"]


class Slow:
    """Answers after a while, and some texts from what it said before."""

    name, at_once, deadline_ms = "slow", 1, 2.0

    def __init__(self, cached: set[str]) -> None:
        self.cached = cached
        self.asked: list[str] = []

    async def plan(self, text: str) -> Plan:
        self.asked.append(text)
        taken = structs.replace(step("legal", cached=text in self.cached), duration_ms=3.0 if text == "late" else 1.0)
        return plan(taken)


async def test_latency_is_of_different_texts_that_nobody_asked_before() -> None:
    subject = Slow({"known", "known too"})
    found = await latency(subject, ["new", "known", "new", "new", "late", "known too"])
    assert sorted(subject.asked) == ["known", "known too", "late", "new"]
    assert (found.prompts, found.cached, found.late, found.deadline_ms) == (2, 2, 1, 2.0)
    assert found.p50_ms is not None and found.p95_ms is not None and 0 < found.p50_ms <= found.p95_ms
    nothing = await latency(Slow({"known"}), ["known"])
    assert (nothing.prompts, nothing.p50_ms) == (0, None)


async def test_latency_is_of_two_hundred_prompts_at_most() -> None:
    subject = Slow(set())
    found = await latency(subject, [f"{n}" for n in range(1000)], seed=1)
    assert found.prompts == len(subject.asked) == AT_MOST
