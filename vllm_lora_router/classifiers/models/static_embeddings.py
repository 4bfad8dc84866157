"""Static encoders: a text is the mean of its tokens' vectors, which a table holds; microseconds on a CPU."""

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vllm_lora_router.classifiers import ClassifierError


class StaticNetwork:
    """A model of model2vec as a `Network`; nothing in it grows with a text's length but the time."""

    longest = 1_000_000
    runs_on = "static, cpu"
    on_any_thread = True

    def __init__(self, model: Any) -> None:
        """`model` is a model2vec.StaticModel, whose tokenizer is this network's from now on.

        Raises:
            ValueError: its tokenizer knows tokens that its table has no vectors for.
        """
        from transformers import PreTrainedTokenizerFast

        self._table: np.ndarray = model.embedding
        # What only models with a quantized vocabulary have, and model2vec before 0.7 does not know of.
        self._weights: np.ndarray | None = getattr(model, "weights", None)
        self._places: np.ndarray | None = getattr(model, "token_mapping", None)
        self._unknown: int | None = model.unk_token_id
        self._tokenizer = model.tokenizer
        # model2vec saves a tokenizer that cuts at 512 tokens.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        last = max(self._tokenizer.get_vocab().values(), default=-1)
        rows = len(self._table if self._places is None else self._places)
        if last >= rows:
            raise ValueError(f"its tokens are numbered up to {last}, and its table has {rows} rows")
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=self._tokenizer)

    @property
    def dimensions(self) -> int:
        """The numbers in a row."""
        return self._table.shape[1]

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        """float32 [texts, dimensions], each row of length 1, or 0 for a text without a known token."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = np.zeros((len(texts), self.dimensions), np.float32)
        for row, encoding in zip(rows, encodings, strict=True):
            tokens = [token for token in encoding.ids[:max_tokens] if token != self._unknown]
            if tokens:
                # A mean is a sum of another length, and the length goes.
                total = self._sum(tokens)
                row[:] = total / (math.sqrt(total @ total) or 1.0)
        return rows

    def _sum(self, tokens: Sequence[int]) -> np.ndarray:
        vectors = self._table[tokens if self._places is None else self._places[tokens]]
        if self._weights is not None:
            vectors = vectors * self._weights[tokens][:, None]
        return vectors.sum(axis=0, dtype=np.float64)  # of 100,000 tokens, float32 would lose the third digit


def is_static(folder: Path) -> bool:
    """Whether a folder's config.json says that a model of model2vec lies there."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "model2vec"


def check_installed(folder: Path) -> None:
    """Raises ClassifierError where the package that reads static encoders is missing."""
    if find_spec("model2vec") is None:
        raise ClassifierError(f"{folder}: a static encoder needs model2vec; pip install 'vllm-lora-router[static]'")


def load_static(folder: Path) -> StaticNetwork:
    """The model in a folder of model2vec's format.

    Raises:
        ClassifierError: model2vec is not installed, or the folder does not hold such a model.
    """
    check_installed(folder)
    try:
        from model2vec import StaticModel

        if not is_static(folder):  # model2vec would ask a hub for what is not there
            raise ValueError("its config.json is missing or does not say model_type: model2vec")
        return StaticNetwork(StaticModel.from_pretrained(folder))
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ClassifierError(
            f"{folder}: cannot be read as a static encoder ({why}); it must hold config.json, model.safetensors and "
            "tokenizer.json as model2vec writes them: vllm-lora-router distill MODEL FOLDER makes one of any encoder"
        ) from None
