"""Heads: what they say of texts that they know, that they do not know, and of what is of no category."""

from dataclasses import replace

import numpy as np
import pytest

from vllm_lora_router.classifiers.heads.calibration import calibrate
from vllm_lora_router.classifiers.heads.few_shot import KERNEL, PENALTY, fit_few
from vllm_lora_router.classifiers.heads.head import Head, probabilities
from vllm_lora_router.classifiers.heads.kernel import Kernel
from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled, fit_at, fit_exact, left_out_scores

from .conftest import DIMENSIONS, Around


def test_a_head_finds_the_category_of_what_lies_near_its_examples(three: Labelled, around: Around) -> None:
    head = fit_few(three, np.ones(len(three), bool)).head
    assert head.categories == ("a", "b", "c")
    for place, category in enumerate((0, 1, 1, 2)):
        found = head(around(place, 20, seed=1))
        assert (found.argmax(axis=1) == category).mean() >= 0.9
        assert (found.sum(axis=1) <= 1 + 1e-6).all()


def test_what_is_like_no_category_is_given_to_none_of_them(three: Labelled, around: Around) -> None:
    head = fit_few(three, np.ones(len(three), bool)).head
    known, strange = head(around(0, 50, seed=1)).sum(axis=1), head(around(9, 50, seed=1)).sum(axis=1)
    assert np.median(known) > 0.8
    assert np.median(strange) < 0.4


def test_the_probability_of_a_category_is_the_sum_over_its_intents() -> None:
    outputs = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.log(np.array([[0.2, 0.3, 0.4]]))
    found = probabilities(scores, 1.0, float(np.log(0.1)), outputs)
    assert found[0].tolist() == pytest.approx([0.5, 0.4])
    assert probabilities(scores, 1.0, -np.inf, outputs)[0].sum() == pytest.approx(1)


@pytest.mark.parametrize("kernel", [KERNEL, Kernel("rbf", 2.0), Kernel("linear")])
def test_an_example_left_out_in_closed_form_is_scored_as_by_a_head_without_it(three: Labelled, kernel: Kernel) -> None:
    closed = left_out_scores(three, kernel, PENALTY)
    for place in (0, 11, 31):
        others = three.at(np.delete(np.arange(len(three)), place))
        assert closed[place] == pytest.approx(
            fit_exact(others, kernel, PENALTY).scores(three.vectors[[place]])[0], abs=1e-4
        )


def test_a_head_with_all_examples_as_its_points_is_the_exact_one(three: Labelled, around: Around) -> None:
    asked = around(1, 10, seed=3)
    few, exact = fit_at(three, three.vectors, KERNEL, PENALTY), fit_exact(three, KERNEL, PENALTY)
    assert few.scores(asked) == pytest.approx(exact.scores(asked), abs=2e-3)


def test_kernels_are_functions_of_the_distance() -> None:
    vectors = np.eye(2, DIMENSIONS, dtype=np.float32)
    cosines = vectors @ vectors.T
    assert Kernel("rbf", 0.5)(cosines)[0, 1] == pytest.approx(np.exp(-0.5 * 2))
    assert Kernel("cosine", 2.0)(np.array([-0.5, 0.5])).tolist() == [0, 0.25]


def test_of_one_text_each_a_head_is_made_and_says_that_it_is_not_calibrated(around: Around) -> None:
    data = Labelled(np.concatenate([around(place, 1) for place in range(3)]), np.arange(3), "abc", "abc")
    few = fit_few(data, np.zeros(3, bool))
    assert not few.calibrated
    found = few.head(np.concatenate([around(place, 20, seed=1) for place in range(3)]))
    assert (found.argmax(axis=1) == np.repeat(np.arange(3), 20)).mean() > 0.9


def test_descriptions_are_not_what_a_head_is_calibrated_by(three: Labelled, around: Around) -> None:
    """Texts that lie nowhere near what people ask would make it doubt everything."""
    odd = Labelled(
        np.concatenate([three.vectors, around(20, 4)]), np.append(three.outputs, [0, 1, 2, 3]), three.names,
        three.categories,
    )  # fmt: skip
    asked = np.arange(len(odd)) < len(three)
    told = fit_few(odd, asked).head(around(0, 50, seed=1)).max(axis=1)
    taken = fit_few(odd, np.ones(len(odd), bool)).head(around(0, 50, seed=1)).max(axis=1)
    assert np.median(told) > np.median(taken)


def test_calibration_finds_the_scale_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 3))
    true = probabilities(scores, 2.5, 0.4, np.eye(3, dtype=np.float32))
    drawn = rng.random(len(scores))[:, None] < np.cumsum(true, axis=1)
    labels = np.where(drawn.any(axis=1), drawn.argmax(axis=1), -1)
    found = calibrate(scores, labels, np.eye(3, dtype=np.float32), np.ones(len(scores)))
    assert found.scale == pytest.approx(2.5, rel=0.05)
    assert found.none == pytest.approx(0.4, abs=0.05)
    without = calibrate(scores, np.maximum(labels, 0), np.eye(3, dtype=np.float32), np.ones(len(scores)))
    assert without.none == -np.inf


def test_a_scaled_head_orders_categories_as_before(three: Labelled, around: Around) -> None:
    head: Head = fit_exact(three, KERNEL, PENALTY)
    asked = around(2, 30, seed=5, spread=0.4)
    soft, hard = replace(head, scale=3.0)(asked), replace(head, scale=12.0)(asked)
    assert hard.max(axis=1).mean() > soft.max(axis=1).mean()
