"""Static encoders: the embedding of a text is the mean of its tokens' vectors. Takes microseconds on a CPU."""

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vllm_lora_router.classifiers import ClassifierError


class StaticEmbeddingModel:
    """A model2vec model as a `TextModel`. Its memory does not grow with the length of a text."""

    max_length = 1_000_000
    runs_on = "static, cpu"
    thread_safe = True

    def __init__(self, model: Any) -> None:
        """Wrap a `model2vec.StaticModel` and take over its tokenizer.

        Raises:
            ValueError: The tokenizer has tokens without a vector in the table.
        """
        from transformers import PreTrainedTokenizerFast

        self._table: np.ndarray = model.embedding
        # Only models with a quantized vocabulary have these attributes, and model2vec before 0.7 lacks them.
        self._weights: np.ndarray | None = getattr(model, "weights", None)
        self._rows: np.ndarray | None = getattr(model, "token_mapping", None)
        self._unknown: int | None = model.unk_token_id
        self._tokenizer = model.tokenizer
        # model2vec saves a tokenizer that truncates at 512 tokens.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        last = max(self._tokenizer.get_vocab().values(), default=-1)
        rows = len(self._table if self._rows is None else self._rows)
        if last >= rows:
            raise ValueError(f"its token ids go up to {last}, but its table has {rows} rows")
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=self._tokenizer)

    @property
    def dimensions(self) -> int:
        """Return the length of a vector."""
        return self._table.shape[1]

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        """Return float32 [texts, dimensions], each row of length 1, or 0 for a text without a known token."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = np.zeros((len(texts), self.dimensions), np.float32)
        for row, encoding in zip(rows, encodings, strict=True):
            tokens = [token for token in encoding.ids[:max_tokens] if token != self._unknown]
            if tokens:
                # The sum has the direction of the mean, and normalization removes its length.
                total = self._sum(tokens)
                row[:] = total / (math.sqrt(total @ total) or 1.0)
        return rows

    def _sum(self, tokens: Sequence[int]) -> np.ndarray:
        vectors = self._table[tokens if self._rows is None else self._rows[tokens]]
        if self._weights is not None:
            vectors = vectors * self._weights[tokens][:, None]
        return vectors.sum(axis=0, dtype=np.float64)  # with 100,000 tokens, float32 would lose the third digit


def is_static(folder: Path) -> bool:
    """Return whether a folder's config.json declares a model2vec model."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "model2vec"


def check_installed(folder: Path) -> None:
    """Raise ClassifierError if the package model2vec is missing."""
    if find_spec("model2vec") is None:
        raise ClassifierError(f"{folder}: a static encoder needs model2vec; pip install 'vllm-lora-router[static]'")


def load_static(folder: Path) -> StaticEmbeddingModel:
    """Load a model from a folder in model2vec's format.

    Raises:
        ClassifierError: model2vec is not installed, or the folder does not contain such a model.
    """
    check_installed(folder)
    try:
        from model2vec import StaticModel

        if not is_static(folder):  # otherwise model2vec would look for the name on the hub
            raise ValueError("its config.json is missing or does not have model_type: model2vec")
        return StaticEmbeddingModel(StaticModel.from_pretrained(folder))
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ClassifierError(
            f"{folder}: cannot be read as a static encoder ({why}); it must contain config.json, model.safetensors and "
            "tokenizer.json as model2vec writes them; vllm-lora-router distill MODEL FOLDER creates one"
        ) from None
