"""Models as functions from texts to rows of numbers, whatever runs them."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Network(Protocol):
    """A loaded model."""

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

    @property
    def on_any_thread(self) -> bool:
        """Whether it may be called on any thread, and on several at once; else on one, always the same."""
        ...

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        """float32 [texts, outputs]; what is longer than `max_tokens` is cut."""
        ...
