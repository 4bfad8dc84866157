"""Kernel ridge regression on category indicators, in closed form and exact for few examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.classifiers.heads.head import Head, Kernel, membership_of


@dataclass(frozen=True, eq=False)
class LabelledEmbeddings:
    """Embedded examples and their outputs."""

    vectors: np.ndarray  # float32 [examples, dimensions], each row of length 1
    outputs: np.ndarray  # int [examples]: an index into `names`; -1: no category
    names: Sequence[str]  # names of the outputs
    categories: Sequence[str]  # the category of each output

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def membership(self) -> np.ndarray:
        """float32 [outputs, categories]: 1 if the output belongs to the category."""
        return membership_of(self.categories)

    @property
    def labels(self) -> np.ndarray:
        """int [examples]: the index of the example's category among the distinct categories; -1: no category."""
        of_output = self.membership.argmax(axis=1)
        return np.where(self.outputs >= 0, of_output[self.outputs], -1)

    def targets(self) -> np.ndarray:
        """Return float64 [examples, outputs]: 1 for the example's output, minus the mean over all outputs."""
        count = len(self.names)
        return (self.outputs[:, None] == np.arange(count)) - 1 / count

    def subset(self, indexes: np.ndarray) -> "LabelledEmbeddings":
        """Return some of the examples. The outputs stay the same."""
        return LabelledEmbeddings(self.vectors[indexes], self.outputs[indexes], self.names, self.categories)


def fit_exact(data: LabelledEmbeddings, kernel: Kernel, penalty: float) -> Head:
    """Return a head that uses every example as a point."""
    gram = _gram(data.vectors, kernel)
    weights = np.linalg.solve(gram + penalty * np.eye(len(data)), data.targets())
    return _head(data, kernel, data.vectors, weights)


def fit_with_points(data: LabelledEmbeddings, points: np.ndarray, kernel: Kernel, penalty: float) -> Head:
    """Return a head with fewer points than examples.

    This is the subset of regressors: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), 8.3.1.

    Args:
        points: float32 [points, dimensions], each row of length 1.
    """
    cross = kernel(data.vectors @ points.T).astype(np.float64)  # [examples, points]
    normal = cross.T @ cross + penalty * _gram(points, kernel)
    normal[np.diag_indices_from(normal)] += 1e-7 * len(data)  # keeps the matrix invertible if points nearly coincide
    return _head(data, kernel, points, np.linalg.solve(normal, cross.T @ data.targets()))


def leave_one_out_scores(data: LabelledEmbeddings, kernel: Kernel, penalty: float) -> np.ndarray:
    """Return float64 [examples, outputs]: the scores of each example from `fit_exact` without that example.

    In closed form: Rasmussen and Williams, 5.4.2 (equation 5.12).
    """
    inverse = np.linalg.inv(_gram(data.vectors, kernel) + penalty * np.eye(len(data)))
    targets = data.targets()
    return targets - (inverse @ targets) / np.diag(inverse)[:, None]


def _gram(vectors: np.ndarray, kernel: Kernel) -> np.ndarray:
    return kernel((vectors @ vectors.T).astype(np.float64))


def _head(data: LabelledEmbeddings, kernel: Kernel, points: np.ndarray, weights: np.ndarray) -> Head:
    bias = np.zeros(len(data.names), np.float32)
    return Head(kernel, points.astype(np.float32), weights.astype(np.float32), bias, data.categories, names=data.names)
