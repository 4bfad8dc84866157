"""Kernel ridge regression on the categories' indicators: closed forms, exact for few examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.classifiers.heads.head import Head, membership_of
from vllm_lora_router.classifiers.heads.kernel import Kernel


@dataclass(frozen=True, eq=False)
class Labelled:
    """Embedded examples."""

    vectors: np.ndarray  # float32 [examples, dimensions], each of length 1
    outputs: np.ndarray  # int [examples]: a place in `names`; -1: no category
    names: Sequence[str]  # of the outputs
    categories: Sequence[str]  # the category of each output

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def membership(self) -> np.ndarray:
        """float32 [outputs, categories]: which category each output is of."""
        return membership_of(self.categories)

    @property
    def labels(self) -> np.ndarray:
        """int [examples]: the place of its category among the distinct ones, in their order; -1: none."""
        of_output = self.membership.argmax(axis=1)
        return np.where(self.outputs >= 0, of_output[self.outputs], -1)

    def targets(self) -> np.ndarray:
        """float64 [examples, outputs]: 1 where the output is the example's, less what all have on average."""
        count = len(self.names)
        return (self.outputs[:, None] == np.arange(count)) - 1 / count

    def at(self, places: np.ndarray) -> "Labelled":
        """Some of the examples; the outputs stay."""
        return Labelled(self.vectors[places], self.outputs[places], self.names, self.categories)


def fit_exact(data: Labelled, kernel: Kernel, penalty: float) -> Head:
    """Every example is a point of the head."""
    gram = _gram(data.vectors, kernel)
    weights = np.linalg.solve(gram + penalty * np.eye(len(data)), data.targets())
    return _head(data, kernel, data.vectors, weights)


def fit_at(data: Labelled, points: np.ndarray, kernel: Kernel, penalty: float) -> Head:
    """With fewer points than examples: the subset of regressors, as in Rasmussen and Williams, Gaussian Processes for
    Machine Learning (2006), 8.3.1.

    Args:
        points: float32 [points, dimensions], each of length 1.
    """
    across = kernel(data.vectors @ points.T).astype(np.float64)  # [examples, points]
    normal = across.T @ across + penalty * _gram(points, kernel)
    normal[np.diag_indices_from(normal)] += 1e-7 * len(data)  # points may all but coincide
    return _head(data, kernel, points, np.linalg.solve(normal, across.T @ data.targets()))


def left_out_scores(data: Labelled, kernel: Kernel, penalty: float) -> np.ndarray:
    """float64 [examples, outputs]: what `fit_exact` without an example would say of it, for each of them.

    In closed form: Rasmussen and Williams, 5.4.2 (equation 5.12).
    """
    inverse = np.linalg.inv(_gram(data.vectors, kernel) + penalty * np.eye(len(data)))
    targets = data.targets()
    return targets - (inverse @ targets) / np.diag(inverse)[:, None]


def _gram(vectors: np.ndarray, kernel: Kernel) -> np.ndarray:
    return kernel((vectors @ vectors.T).astype(np.float64))


def _head(data: Labelled, kernel: Kernel, points: np.ndarray, weights: np.ndarray) -> Head:
    bias = np.zeros(len(data.names), np.float32)
    return Head(kernel, points.astype(np.float32), weights.astype(np.float32), bias, data.categories, names=data.names)
