"""How alike two unit vectors are to a head, as a function of their cosine."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Name = Literal["linear", "rbf", "cosine"]


@dataclass(frozen=True)
class Kernel:
    """linear: the cosine itself. rbf: exp(-parameter * squared distance). cosine: its positive part to that power.

    The positive part of the cosine of an encoder's embeddings tells few examples apart better than a radial basis
    function: what two texts do not share at all counts nothing.
    """

    name: Name
    parameter: float = 1.0

    def __call__(self, cosines: np.ndarray) -> np.ndarray:
        if self.name == "rbf":
            return np.exp((2 * self.parameter) * (cosines - 1))  # the squared distance of unit vectors is 2 - 2 cosine
        if self.name == "cosine":
            return np.maximum(cosines, 0) ** self.parameter
        return cosines

    def __str__(self) -> str:
        return self.name if self.name == "linear" else f"{self.name} {self.parameter:g}"
