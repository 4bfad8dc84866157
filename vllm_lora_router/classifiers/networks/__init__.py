"""Models as functions from texts to rows of numbers, whatever runs them."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Network(Protocol):
    """A loaded model; for one thread."""

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer of transformers."""
        ...

    @property
    def longest(self) -> int:
        """The tokens that it can read, special ones included."""
        ...

    @property
    def runs_on(self) -> str:
        """Runtime and device, such as "torch, cuda"."""
        ...

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        """float32 [texts, outputs]; what is longer than `max_tokens` is cut."""
        ...
