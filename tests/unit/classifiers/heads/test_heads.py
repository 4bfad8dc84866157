"""Heads: probabilities of known categories and of no category, closed forms, and calibration."""

from dataclasses import replace

import numpy as np
import pytest

from vllm_lora_router.classifiers.heads.calibration import calibrate
from vllm_lora_router.classifiers.heads.few_shot import KERNEL, PENALTY, fit_few_shot
from vllm_lora_router.classifiers.heads.head import Head, Kernel, probabilities
from vllm_lora_router.classifiers.heads.kernel_ridge import (
    LabelledEmbeddings,
    fit_exact,
    fit_with_points,
    leave_one_out_scores,
)

from .conftest import DIMENSIONS, Around


def test_a_head_predicts_the_category_of_similar_texts(three: LabelledEmbeddings, around: Around) -> None:
    head = fit_few_shot(three, np.ones(len(three), bool)).head
    assert head.categories == ("a", "b", "c")
    for index, category in enumerate((0, 1, 1, 2)):
        result = head(around(index, 20, seed=1))
        assert (result.argmax(axis=1) == category).mean() >= 0.9
        assert (result.sum(axis=1) <= 1 + 1e-6).all()


def test_a_head_gives_dissimilar_texts_no_category(three: LabelledEmbeddings, around: Around) -> None:
    head = fit_few_shot(three, np.ones(len(three), bool)).head
    known, unrelated = head(around(0, 50, seed=1)).sum(axis=1), head(around(9, 50, seed=1)).sum(axis=1)
    assert np.median(known) > 0.8
    assert np.median(unrelated) < 0.4


def test_the_probability_of_a_category_is_the_sum_over_its_outputs() -> None:
    outputs = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.log(np.array([[0.2, 0.3, 0.4]]))
    result = probabilities(scores, 1.0, float(np.log(0.1)), outputs)
    assert result[0].tolist() == pytest.approx([0.5, 0.4])
    assert probabilities(scores, 1.0, -np.inf, outputs)[0].sum() == pytest.approx(1)


@pytest.mark.parametrize("kernel", [KERNEL, Kernel("rbf", 2.0), Kernel("linear")])
def test_leave_one_out_scores_equal_those_of_a_head_without_the_example(
    three: LabelledEmbeddings, kernel: Kernel
) -> None:
    closed_form = leave_one_out_scores(three, kernel, PENALTY)
    for index in (0, 11, 31):
        others = three.subset(np.delete(np.arange(len(three)), index))
        assert closed_form[index] == pytest.approx(
            fit_exact(others, kernel, PENALTY).scores(three.vectors[[index]])[0], abs=1e-4
        )


def test_a_head_with_all_examples_as_points_equals_the_exact_head(three: LabelledEmbeddings, around: Around) -> None:
    vectors = around(1, 10, seed=3)
    with_points, exact = fit_with_points(three, three.vectors, KERNEL, PENALTY), fit_exact(three, KERNEL, PENALTY)
    assert with_points.scores(vectors) == pytest.approx(exact.scores(vectors), abs=2e-3)


def test_kernels_are_functions_of_the_cosine() -> None:
    vectors = np.eye(2, DIMENSIONS, dtype=np.float32)
    cosines = vectors @ vectors.T
    assert Kernel("rbf", 0.5)(cosines)[0, 1] == pytest.approx(np.exp(-0.5 * 2))
    assert Kernel("cosine", 2.0)(np.array([-0.5, 0.5])).tolist() == [0, 0.25]


def test_a_head_from_one_text_for_each_category_is_not_calibrated(around: Around) -> None:
    data = LabelledEmbeddings(np.concatenate([around(index, 1) for index in range(3)]), np.arange(3), "abc", "abc")
    fit = fit_few_shot(data, np.zeros(3, bool))
    assert not fit.calibrated
    result = fit.head(np.concatenate([around(index, 20, seed=1) for index in range(3)]))
    assert (result.argmax(axis=1) == np.repeat(np.arange(3), 20)).mean() > 0.9


def test_descriptions_are_not_used_for_the_calibration(three: LabelledEmbeddings, around: Around) -> None:
    """Descriptions that are far from the users' questions would lower all probabilities."""
    with_descriptions = LabelledEmbeddings(
        np.concatenate([three.vectors, around(20, 4)]), np.append(three.outputs, [0, 1, 2, 3]), three.names,
        three.categories,
    )  # fmt: skip
    is_example = np.arange(len(with_descriptions)) < len(three)
    marked = fit_few_shot(with_descriptions, is_example).head(around(0, 50, seed=1)).max(axis=1)
    unmarked = (
        fit_few_shot(with_descriptions, np.ones(len(with_descriptions), bool)).head(around(0, 50, seed=1)).max(axis=1)
    )
    assert np.median(marked) > np.median(unmarked)


def test_calibration_recovers_the_scale_that_generated_the_labels() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 3))
    expected = probabilities(scores, 2.5, 0.4, np.eye(3, dtype=np.float32))
    drawn = rng.random(len(scores))[:, None] < np.cumsum(expected, axis=1)
    labels = np.where(drawn.any(axis=1), drawn.argmax(axis=1), -1)
    result = calibrate(scores, labels, np.eye(3, dtype=np.float32), np.ones(len(scores)))
    assert result.scale == pytest.approx(2.5, rel=0.05)
    assert result.none_score == pytest.approx(0.4, abs=0.05)
    without_outside = calibrate(scores, np.maximum(labels, 0), np.eye(3, dtype=np.float32), np.ones(len(scores)))
    assert without_outside.none_score == -np.inf


def test_a_larger_scale_gives_more_confident_probabilities(three: LabelledEmbeddings, around: Around) -> None:
    head: Head = fit_exact(three, KERNEL, PENALTY)
    vectors = around(2, 30, seed=5, spread=0.4)
    soft, hard = replace(head, scale=3.0)(vectors), replace(head, scale=12.0)(vectors)
    assert hard.max(axis=1).mean() > soft.max(axis=1).mean()
