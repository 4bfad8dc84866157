"""The heads that fitting chooses from: each a way from embedded examples to a head."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.classifiers.heads.head import Head
from vllm_lora_router.classifiers.heads.kernel import Kernel
from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled, fit_at, fit_exact

NEVER = -1e3  # the score of an output without examples
MOST_POINTS = 2000  # of a kernel machine: more would make scoring slower than it need be
Fit = Callable[[Labelled, np.ndarray | None], Head]


@dataclass(frozen=True)
class Way:
    """One way to fit a head."""

    name: str  # with its parameters
    fit: Fit  # takes the points of a kernel machine; None: every example is one


def ways() -> list[Way]:
    """All that are tried, simple ones first: of equally good ones the first is taken."""
    found = [Way("nearest mean", _nearest_mean)]
    found += [Way(f"logistic, C {c:g}", lambda data, _, c=c: _logistic(data, c)) for c in (10.0, 100.0)]
    kernels = [Kernel("cosine", 2.0), Kernel("cosine", 3.0), Kernel("rbf", 1.0), Kernel("rbf", 2.0)]
    found += [
        Way(f"{kernel}, penalty {penalty:g}", lambda data, points, of=(kernel, penalty): _ridge(data, points, *of))
        for kernel in kernels
        for penalty in (0.03, 0.1)
    ]
    return found


def choose_points(data: Labelled, seed: int, most: int = MOST_POINTS) -> np.ndarray | None:
    """float32 [points, dimensions] for a kernel machine; None: every example is one.

    Where there are too many examples, the centres that k-means finds among those of each output, in proportion.
    """
    if len(data) <= most:
        return None
    from sklearn.cluster import KMeans

    centres: list[np.ndarray] = []
    for output in np.unique(data.outputs):
        own = data.vectors[data.outputs == output]
        count = max(round(most * len(own) / len(data)), 1)
        means = KMeans(count, n_init="auto", max_iter=10, random_state=seed).fit(own).cluster_centers_
        centres.append(means)
    found = np.concatenate(centres)
    return (found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _ridge(data: Labelled, points: np.ndarray | None, kernel: Kernel, penalty: float) -> Head:
    return fit_exact(data, kernel, penalty) if points is None else fit_at(data, points, kernel, penalty)


def _nearest_mean(data: Labelled, _: np.ndarray | None) -> Head:
    sums = np.array([data.vectors[data.outputs == output].sum(axis=0) for output in range(len(data.names))])
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    return _linear(data, means, np.where(sums.any(axis=1), 0.0, NEVER))


def _logistic(data: Labelled, c: float) -> Head:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    inside = data.outputs >= 0
    # Threads that share so little work mostly wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1 if len(data) < MOST_POINTS else None):
        warnings.simplefilter("ignore", ConvergenceWarning)  # held-out examples judge what came of it
        model = LogisticRegression(C=c, max_iter=200).fit(data.vectors[inside], data.outputs[inside])
    rows, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn has one row for both then
        rows, bias = np.concatenate([-rows, rows]) / 2, np.concatenate([-bias, bias]) / 2
    coefficients, intercepts = np.zeros((len(data.names), data.vectors.shape[1])), np.full(len(data.names), NEVER)
    coefficients[model.classes_], intercepts[model.classes_] = rows, bias
    return _linear(data, coefficients, intercepts)


def _linear(data: Labelled, rows: np.ndarray, bias: np.ndarray) -> Head:
    identity = np.eye(len(rows), dtype=np.float32)
    return Head(
        Kernel("linear"), rows.astype(np.float32), identity, bias.astype(np.float32), data.categories, names=data.names
    )


def output_names(pairs: Sequence[tuple[str, str | None]]) -> tuple[list[str], list[str]]:
    """Names and categories of a head's outputs, from the category and the intent of each example in scope."""
    found = dict.fromkeys((category, intent) for category, intent in pairs)
    return [intent or category for category, intent in found], [category for category, _ in found]
