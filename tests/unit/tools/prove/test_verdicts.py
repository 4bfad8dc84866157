"""Verdicts on the assignment of a category."""

import re

import numpy as np
import pytest

from vllm_lora_router.tools.prove.verdicts import CategoryResult, judge

MODELS = ("base", "a-lora", "b-lora", "c-lora")


def result(
    served_by: str, *shifts: float, pairs: int = 24, models: tuple[str, ...] = MODELS, seed: int = 0
) -> CategoryResult:
    rng = np.random.default_rng(seed)
    values = rng.normal(-3, 1, (pairs, 1)) + rng.normal(0, 0.2, (pairs, len(shifts))) + np.array(shifts)
    return judge("B", served_by, models, values)


def test_adapter_that_is_better_than_the_base_helps() -> None:
    verdict = result("a-lora", 0, 1, 0.2, 0.1).verdict
    assert verdict.kind == "helps" and not verdict.is_wrong
    assert re.fullmatch(r"`B`: `a-lora` helps \(\+[\d.]+, 95 % \+[\d.]+ to \+[\d.]+ nats per token\)", verdict.text)


def test_adapter_that_is_worse_than_the_base_should_be_replaced_by_it() -> None:
    verdict = result("a-lora", 0, -1, -2, -2).verdict
    assert (verdict.kind, verdict.model, verdict.is_wrong) == ("use_base", "base", True)
    assert verdict.text.startswith("`B`: use the base instead of `a-lora`, which is worse (-")


def test_better_adapter_is_named() -> None:
    for served_by in ("a-lora", "base"):
        verdict = result(served_by, 0, 0.5, 1.5, 1.0).verdict
        assert (verdict.kind, verdict.model, verdict.is_wrong) == ("use_other", "b-lora", True)
        assert verdict.text.startswith(f"`B`: use `b-lora`, which is better than `{served_by}` (+")


def test_best_of_base_and_other_adapters_is_named() -> None:
    assert result("a-lora", 1, 0, 0.5, 0).verdict.model == "base"
    assert result("a-lora", 0.5, 0, 1, 0).verdict.model == "b-lora"


def test_base_stays_if_no_adapter_looks_better() -> None:
    verdict = result("base", 0, -1, -0.5, -2).verdict
    assert (verdict.kind, verdict.text) == ("keep_base", "`B`: keep the base; no adapter looks better")
    only_base = result("base", 0, models=("base",)).verdict
    assert (only_base.kind, only_base.text) == ("keep_base", "`B`: keep the base; no adapter was scored")


def test_inconclusive_verdict_states_the_pairs_needed() -> None:
    verdict = result("a-lora", 0, 0.01, -1, -1).verdict
    assert verdict.kind == "inconclusive" and not verdict.is_wrong
    match = re.fullmatch(
        r"`B`: 24 pairs show no difference between `a-lora` and the base; about ([\d,]+) pairs are needed to detect "
        r"the observed difference \([+-]0\.\d+\)",
        verdict.text,
    )
    assert match and int(match[1].replace(",", "")) == (verdict.pairs_needed or 0) > 24
    nearest = result("base", 0, 0.01, -1, -1, seed=2).verdict
    assert nearest.kind == "inconclusive" and "between `a-lora` and the base" in nearest.text


def test_five_pairs_are_too_few_for_a_verdict() -> None:
    for served_by in ("a-lora", "base"):
        verdict = result(served_by, 0, -5, 5, -5, pairs=5).verdict
        assert (verdict.kind, verdict.is_wrong) == ("inconclusive", False)
        assert verdict.text.endswith("; at least 6 pairs are needed")


def test_adapter_without_effect_is_inconclusive() -> None:
    values = np.repeat(np.linspace(-4, -2, 12)[:, None], 2, axis=1)
    verdict = judge("B", "a-lora", ("base", "a-lora"), values).verdict
    assert verdict.kind == "inconclusive" and verdict.text.endswith("and the base: all log-likelihoods are equal")


def test_category_without_score_of_its_adapter_has_no_verdict() -> None:
    row = result("z-lora", 0, 1, 2, 3)
    assert row.verdict.kind == "not_scored" and "`z-lora`" in row.verdict.text
    assert set(row.to_base) == {"a-lora", "b-lora", "c-lora"} and row.to_served == {}


@pytest.mark.parametrize("adapters", [1, 6])
def test_correct_assignment_is_rarely_called_wrong_with_many_adapters(adapters: int) -> None:
    models = ("base", *(f"{n}-lora" for n in range(adapters)))
    wrong = sum(
        result("0-lora", *[0.0] * (adapters + 1), pairs=12, models=models, seed=n).verdict.is_wrong for n in range(300)
    )
    assert wrong <= 27  # 15 of 300 are expected without any difference
