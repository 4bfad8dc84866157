"""Candidate heads of `fit`: nearest mean, logistic regression and kernel ridge regression."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.classifiers.heads.head import Head, Kernel
from vllm_lora_router.classifiers.heads.kernel_ridge import LabelledEmbeddings, fit_exact, fit_with_points

NEVER = -1e3  # the score of an output without examples
MAX_POINTS = 2000  # of a kernel machine: more would slow down scoring
# Fits a head, given the points of a kernel machine; None: every example is a point.
FitHead = Callable[[LabelledEmbeddings, np.ndarray | None], Head]


@dataclass(frozen=True)
class HeadCandidate:
    """A kind of head with its hyperparameters."""

    name: str
    fit: FitHead


def head_candidates() -> list[HeadCandidate]:
    """Return all candidates, simple ones first, so that a tie goes to the simpler one."""
    candidates = [HeadCandidate("nearest mean", _nearest_mean)]
    candidates += [HeadCandidate(f"logistic, C {c:g}", lambda data, _, c=c: _logistic(data, c)) for c in (10.0, 100.0)]
    kernels = [Kernel("cosine", 2.0), Kernel("cosine", 3.0), Kernel("rbf", 1.0), Kernel("rbf", 2.0)]
    candidates += [
        HeadCandidate(
            f"{kernel}, penalty {penalty:g}",
            lambda data, points, parameters=(kernel, penalty): _ridge(data, points, *parameters),
        )
        for kernel in kernels
        for penalty in (0.03, 0.1)
    ]
    return candidates


def choose_points(data: LabelledEmbeddings, seed: int, most: int = MAX_POINTS) -> np.ndarray | None:
    """Return the points of a kernel machine, float32 [points, dimensions]; None: every example is a point.

    More than `most` examples are replaced by the k-means centres of each output, in proportion to its examples.
    """
    if len(data) <= most:
        return None
    from sklearn.cluster import KMeans

    centres: list[np.ndarray] = []
    for output in np.unique(data.outputs):
        vectors = data.vectors[data.outputs == output]
        count = max(round(most * len(vectors) / len(data)), 1)
        kmeans = KMeans(count, n_init="auto", max_iter=10, random_state=seed).fit(vectors)
        centres.append(kmeans.cluster_centers_)
    points = np.concatenate(centres)
    return (points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _ridge(data: LabelledEmbeddings, points: np.ndarray | None, kernel: Kernel, penalty: float) -> Head:
    return fit_exact(data, kernel, penalty) if points is None else fit_with_points(data, points, kernel, penalty)


def _nearest_mean(data: LabelledEmbeddings, _: np.ndarray | None) -> Head:
    sums = np.array([data.vectors[data.outputs == output].sum(axis=0) for output in range(len(data.names))])
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    return _linear(data, means, np.where(sums.any(axis=1), 0.0, NEVER))


def _logistic(data: LabelledEmbeddings, c: float) -> Head:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    inside = data.outputs >= 0
    # With little work per thread, threads mostly wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1 if len(data) < MAX_POINTS else None):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result is judged on held-out examples
        model = LogisticRegression(C=c, max_iter=200).fit(data.vectors[inside], data.outputs[inside])
    rows, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn has one row for two classes
        rows, bias = np.concatenate([-rows, rows]) / 2, np.concatenate([-bias, bias]) / 2
    coefficients, intercepts = np.zeros((len(data.names), data.vectors.shape[1])), np.full(len(data.names), NEVER)
    coefficients[model.classes_], intercepts[model.classes_] = rows, bias
    return _linear(data, coefficients, intercepts)


def _linear(data: LabelledEmbeddings, rows: np.ndarray, bias: np.ndarray) -> Head:
    identity = np.eye(len(rows), dtype=np.float32)
    return Head(
        Kernel("linear"), rows.astype(np.float32), identity, bias.astype(np.float32), data.categories, names=data.names
    )


def output_names(labels: Sequence[tuple[str, str | None]]) -> tuple[list[str], list[str]]:
    """Return the names and categories of a head's outputs, given category and intent of each in-scope example."""
    outputs = list(dict.fromkeys(labels))
    return [intent or category for category, intent in outputs], [category for category, _ in outputs]
