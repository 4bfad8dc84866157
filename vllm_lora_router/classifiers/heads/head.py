"""The head: a kernel machine that maps an encoder's embeddings to the probability of each category."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

KernelName = Literal["linear", "rbf", "cosine"]


@dataclass(frozen=True)
class Kernel:
    """The similarity of two unit vectors as a function of their cosine.

    linear: the cosine itself. rbf: exp(-parameter * squared distance). cosine: the positive part of the cosine to the
    power of `parameter`.

    With few examples, the positive part of the cosine separates categories better than a radial basis function:
    unrelated texts contribute nothing.
    """

    name: KernelName
    parameter: float = 1.0

    def __call__(self, cosines: np.ndarray) -> np.ndarray:
        if self.name == "rbf":
            return np.exp((2 * self.parameter) * (cosines - 1))  # the squared distance of unit vectors is 2 - 2 cosine
        if self.name == "cosine":
            return np.maximum(cosines, 0) ** self.parameter
        return cosines

    def __str__(self) -> str:
        return self.name if self.name == "linear" else f"{self.name} {self.parameter:g}"


@dataclass(frozen=True, eq=False)
class Head:
    """A kernel machine over points in the embedding space. With the linear kernel it is a linear head.

    The score of an output is `kernel(vectors @ points.T) @ weights + bias`. The scores are multiplied by `scale` and
    become probabilities by softmax, together with `none_score`, which represents no category. The probability of a
    category is the sum over its outputs.
    """

    kernel: Kernel
    points: np.ndarray  # float32 [points, dimensions]
    weights: np.ndarray  # float32 [points, outputs]
    bias: np.ndarray  # float32 [outputs]
    outputs: Sequence[str]  # the category of each output
    scale: float = 1.0
    none_score: float = -np.inf
    names: Sequence[str] = field(default=())  # names of the outputs, if they are finer than categories

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The categories of the head, in the order of its probabilities."""
        return tuple(dict.fromkeys(self.outputs))

    @cached_property
    def membership(self) -> np.ndarray:
        """float32 [outputs, categories]: 1 if the output belongs to the category."""
        return membership_of(self.outputs)

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Return float32 [texts, outputs]: scores, before softmax.

        Args:
            vectors: float32 [texts, dimensions], each row of length 1.
        """
        return self.kernel(vectors @ self.points.T) @ self.weights + self.bias

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return float32 [texts, categories]: probabilities. The rest up to 1 is the probability of no category."""
        return probabilities(self.scores(vectors), self.scale, self.none_score, self.membership)


def membership_of(outputs: Sequence[str]) -> np.ndarray:
    """Return float32 [outputs, categories]: 1 if the output belongs to the category, in the order of the categories."""
    categories = dict.fromkeys(outputs)
    return np.array([[output == category for category in categories] for output in outputs], np.float32)


def probabilities(scores: np.ndarray, scale: float, none_score: float, membership: np.ndarray) -> np.ndarray:
    """Return float32 [texts, categories] from scores [texts, outputs]; see `Head`."""
    largest = np.maximum(np.maximum.reduce(scores, axis=1, keepdims=True), none_score)
    exponents = np.exp(scale * (scores - largest))
    total = np.add.reduce(exponents, axis=1, keepdims=True) + np.exp(scale * (none_score - largest))
    return (exponents @ membership) / total
