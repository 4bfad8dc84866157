"""Models as functions from texts to rows of numbers, independent of the runtime."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class TextModel(Protocol):
    """A loaded model: an encoder or a sequence classifier."""

    @property
    def tokenizer(self) -> Any:
        """Return a fast tokenizer from transformers."""
        ...

    @property
    def max_length(self) -> int:
        """Return the maximum number of tokens that the model reads, including special tokens."""
        ...

    @property
    def runs_on(self) -> str:
        """Return runtime and device, such as "torch, cuda"."""
        ...

    @property
    def thread_safe(self) -> bool:
        """Return whether any thread may call the model, and several at once. Otherwise one thread makes all calls."""
        ...

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        """Return float32 [texts, outputs]. Texts with more than `max_tokens` tokens are truncated."""
        ...
