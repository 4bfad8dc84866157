"""What is said of a category's assignment."""

import re

import numpy as np
import pytest

from vllm_lora_router.tools.prove.verdicts import Row, judge

MODELS = ("base", "a-lora", "b-lora", "c-lora")


def row(served_by: str, *shifts: float, pairs: int = 24, models: tuple[str, ...] = MODELS, seed: int = 0) -> Row:
    draw = np.random.default_rng(seed)
    values = draw.normal(-3, 1, (pairs, 1)) + draw.normal(0, 0.2, (pairs, len(shifts))) + np.array(shifts)
    return judge("B", served_by, models, values)


def test_an_adapter_that_does_better_than_the_base_helps() -> None:
    verdict = row("a-lora", 0, 1, 0.2, 0.1).verdict
    assert verdict.kind == "helps" and not verdict.is_wrong
    assert re.fullmatch(r"`B`: `a-lora` helps \(\+[\d.]+, 95 % \+[\d.]+ to \+[\d.]+ nats a token\)", verdict.text)


def test_an_adapter_that_does_worse_than_the_base_should_be_the_base() -> None:
    verdict = row("a-lora", 0, -1, -2, -2).verdict
    assert (verdict.kind, verdict.model, verdict.is_wrong) == ("base", "base", True)
    assert verdict.text.startswith("`B`: this entry should be the base, which `a-lora` falls behind (-")


def test_another_adapter_that_does_better_is_named() -> None:
    for served_by in ("a-lora", "base"):
        verdict = row(served_by, 0, 0.5, 1.5, 1.0).verdict
        assert (verdict.kind, verdict.model, verdict.is_wrong) == ("other", "b-lora", True)
        assert verdict.text.startswith(f"`B` is served better by `b-lora` than by `{served_by}` (+")


def test_of_the_base_and_another_adapter_the_better_one_is_named() -> None:
    assert row("a-lora", 1, 0, 0.5, 0).verdict.model == "base"
    assert row("a-lora", 0.5, 0, 1, 0).verdict.model == "b-lora"


def test_a_base_that_no_adapter_beats_stays() -> None:
    verdict = row("base", 0, -1, -0.5, -2).verdict
    assert (verdict.kind, verdict.text) == ("stays", "`B`: it is the base's, and no adapter looks better")
    alone = row("base", 0, models=("base",)).verdict
    assert (alone.kind, alone.text) == ("stays", "`B`: it is the base's, and no adapter was asked")


def test_what_cannot_be_told_is_said_with_the_pairs_that_it_would_take() -> None:
    verdict = row("a-lora", 0, 0.01, -1, -1).verdict
    assert verdict.kind == "untold" and not verdict.is_wrong
    told = re.fullmatch(
        r"`B`: no difference between `a-lora` and the base can be told with 24 pairs; about ([\d,]+) would be needed "
        r"for the difference seen \([+-]0\.\d+\)",
        verdict.text,
    )
    assert told and int(told[1].replace(",", "")) == verdict.pairs_needed and verdict.pairs_needed > 24
    nearest = row("base", 0, 0.01, -1, -1, seed=2).verdict
    assert nearest.kind == "untold" and "between `a-lora` and the base" in nearest.text


def test_a_handful_of_pairs_is_too_few_for_any_verdict() -> None:
    for served_by in ("a-lora", "base"):
        verdict = row(served_by, 0, -5, 5, -5, pairs=5).verdict
        assert (verdict.kind, verdict.is_wrong) == ("untold", False)
        assert verdict.text.endswith("can be told with 5 pairs; at least 6 are needed for any")


def test_an_adapter_that_does_nothing_is_not_told_from_the_base() -> None:
    values = np.repeat(np.linspace(-4, -2, 12)[:, None], 2, axis=1)
    verdict = judge("B", "a-lora", ("base", "a-lora"), values).verdict
    assert (verdict.kind, verdict.text[-27:]) == ("untold", "12 pairs: all of them gave the same"[-27:])


def test_a_category_whose_adapter_was_not_asked_is_not_judged() -> None:
    found = row("z-lora", 0, 1, 2, 3)
    assert found.verdict.kind == "not asked" and "`z-lora`" in found.verdict.text
    assert set(found.to_base) == {"a-lora", "b-lora", "c-lora"} and found.to_served == {}


@pytest.mark.parametrize("adapters", [1, 6])
def test_a_right_assignment_is_rarely_accused_however_many_adapters_there_are(adapters: int) -> None:
    models = ("base", *(f"{n}-lora" for n in range(adapters)))
    wrong = sum(
        row("0-lora", *[0.0] * (adapters + 1), pairs=12, models=models, seed=n).verdict.is_wrong for n in range(300)
    )
    assert wrong <= 27  # 15 of 300 are to be expected, where nothing differs at all
