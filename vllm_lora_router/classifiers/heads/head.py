"""A head: what turns an encoder's embeddings into the probability of each category."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from vllm_lora_router.classifiers.heads.kernel import Kernel


@dataclass(frozen=True, eq=False)
class Head:
    """A kernel machine over points of the embedding's space; a linear head is one whose kernel does nothing.

    The score of an output is `kernel(vectors @ points.T) @ weights + bias`. Scores times `scale`, with `none` as the
    score that stands for no category, become probabilities by softmax; those of a category's outputs are summed.
    """

    kernel: Kernel
    points: np.ndarray  # float32 [points, dimensions]
    weights: np.ndarray  # float32 [points, outputs]
    bias: np.ndarray  # float32 [outputs]
    outputs: Sequence[str]  # the category of each output
    scale: float = 1.0
    none: float = -np.inf
    names: Sequence[str] = field(default=())  # of the outputs, where they are finer than categories

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Those that it can tell apart, in the order of its probabilities."""
        return tuple(dict.fromkeys(self.outputs))

    @cached_property
    def membership(self) -> np.ndarray:
        """float32 [outputs, categories]: 1 where an output is of a category."""
        return membership_of(self.outputs)

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [texts, outputs]: not yet probabilities.

        Args:
            vectors: float32 [texts, dimensions], each of length 1.
        """
        return self.kernel(vectors @ self.points.T) @ self.weights + self.bias

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [texts, categories]: probabilities; what they lack to 1 is that of no category."""
        return probabilities(self.scores(vectors), self.scale, self.none, self.membership)


def membership_of(outputs: Sequence[str]) -> np.ndarray:
    """float32 [outputs, categories]: which of the distinct categories, in their order, each output is of."""
    distinct = dict.fromkeys(outputs)
    return np.array([[one == category for category in distinct] for one in outputs], np.float32)


def probabilities(scores: np.ndarray, scale: float, none: float, membership: np.ndarray) -> np.ndarray:
    """float32 [texts, categories] from scores [texts, outputs]; see `Head`."""
    most = np.maximum(np.maximum.reduce(scores, axis=1, keepdims=True), none)
    exponents = np.exp(scale * (scores - most))
    total = np.add.reduce(exponents, axis=1, keepdims=True) + np.exp(scale * (none - most))
    return (exponents @ membership) / total
