"""Distillation of a sentence encoder into a static one: the embedding of each token of the vocabulary."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Weight parameter of token frequencies, called a in Arora et al. 2017, "A Simple but Tough-to-Beat Baseline for
# Sentence Embeddings". The value is the best one of the paper, and model2vec's default.
SIF = 1e-4
_BATCH_SIZE = 512  # tokens
_UNUSED = re.compile(r"\[unused\d+\]")
_RENUMBERABLE = ("WordPiece", "WordLevel")  # in other models, tokens refer to each other by merges or by position


class DistillError(ValueError):
    """A model that cannot be distilled, or a folder that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True)
class DistillResult:
    """The static encoder that was written."""

    folder: Path
    tokens: int
    dimensions: int
    variance_kept: float  # share of the variance of the encoder's token embeddings, 0 to 1


def distill(model: str, folder: Path, *, dimensions: int = 256) -> DistillResult:
    """Write a static encoder in model2vec's format into a folder, which is created if needed.

    A token's vector is the encoder's embedding of the token alone, projected on the principal components of all
    tokens and weighted by the token's rank in the vocabulary, which approximates its frequency. The method is
    model2vec's (https://github.com/MinishLab/model2vec).

    Args:
        model: Encoder of sentence-transformers: a folder or a Hub id.
        folder: New or empty folder.
        dimensions: Dimensions of the vectors, at most the encoder's.

    Raises:
        DistillError: A package is not installed; the model cannot be loaded, has no fast tokenizer, or has fewer
            dimensions or tokens than requested; or the folder is not empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DistillError(f"{folder}: exists and is not an empty folder; choose another one")
    try:
        from model2vec import StaticModel
        from sklearn.decomposition import PCA
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _missing_package(error) from None
    encoder = _load_encoder(model)
    if getattr(encoder.tokenizer, "backend_tokenizer", None) is None:
        raise DistillError(f"{model}: has no fast tokenizer of transformers, which a static encoder needs")
    tokenizer, token_ids = _plain_tokenizer(json.loads(encoder.tokenizer.backend_tokenizer.to_str()))
    if token_ids[-1] >= len(token_ids) and tokenizer["model"]["type"] not in _RENUMBERABLE:
        raise DistillError(f"{model}: its token ids have gaps, which model2vec's format does not support")
    encoder_dimensions = _embed(encoder, token_ids[:1]).shape[1]
    maximum = min(encoder_dimensions, len(token_ids))
    if not 0 < dimensions <= maximum:
        raise DistillError(
            f"{model}: has {encoder_dimensions} dimensions and {len(token_ids)} tokens, so {dimensions} dimensions are "
            f"not possible; choose 1 to {maximum}"
        )
    components = PCA(dimensions, svd_solver="covariance_eigh")
    vectors = components.fit_transform(_embed(encoder, token_ids)) * sif_weights(len(token_ids))[:, None]
    name = Path(model).name if Path(model).exists() else model
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "tokenizer_name": name,
        "apply_pca": dimensions,
        "sif_coefficient": SIF,
        "hidden_dim": dimensions,
        "seq_length": 1_000_000,
        "normalize": True,
    }
    static = StaticModel(
        np.ascontiguousarray(vectors, np.float16),
        Tokenizer.from_str(json.dumps(tokenizer)),
        config=config,
        normalize=True,
    )
    static.save_pretrained(folder)
    # safetensors 0.8 makes the file readable for its owner only, but the server may run as another user.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
    # model2vec's README claims the MIT licence, but the licence depends on the encoder.
    (folder / "README.md").unlink(missing_ok=True)
    return DistillResult(folder, len(token_ids), dimensions, float(components.explained_variance_ratio_.sum()))


def sif_weights(tokens: int) -> np.ndarray:
    """Return each token's weight SIF / (SIF + p), float64 [tokens]; p is the frequency of its rank by Zipf's law.

    Vocabularies are mostly sorted by frequency. Ranks start at 2, as in model2vec.
    """
    frequencies = 1 / np.arange(2, tokens + 2)
    return SIF / (SIF + frequencies / frequencies.sum())


def _load_encoder(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer

        from vllm_lora_router.classifiers.models import source
    except ImportError as error:
        raise _missing_package(error) from None
    folder = None if Path(model).exists() else source.packaged(model)
    try:
        return SentenceTransformer(folder or model, device=source.torch_device("auto")).eval()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise DistillError(
            f"{model}: cannot be loaded by sentence-transformers; neither this folder nor the Hub has such a model "
            f"({reason}); name a folder, or pip install 'vllm-lora-router[demo]' for "
            "sentence-transformers/all-MiniLM-L6-v2"
        ) from None


def _missing_package(error: ImportError) -> DistillError:
    return DistillError(f"distill needs more packages ({error}); pip install 'vllm-lora-router[static,train]'")


def _plain_tokenizer(tokenizer: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Return a tokenizer.json without special tokens, truncation and padding, and the encoder's id of each token."""
    ids = {**_vocabulary(tokenizer["model"]), **{added["content"]: added["id"] for added in tokenizer["added_tokens"]}}
    kept = sorted(ids.values())
    tokenizer = {**tokenizer, "truncation": None, "padding": None, "post_processor": None}
    if tokenizer["model"]["type"] in _RENUMBERABLE:
        kept = sorted(number for token, number in ids.items() if not _UNUSED.fullmatch(token))
        new_ids = {number: index for index, number in enumerate(kept)}
        vocabulary = tokenizer["model"]["vocab"]
        tokenizer["model"] = {
            **tokenizer["model"],
            "vocab": {token: new_ids[number] for token, number in vocabulary.items() if number in new_ids},
        }
        tokenizer["added_tokens"] = [
            {**added, "id": new_ids[added["id"]]} for added in tokenizer["added_tokens"] if added["id"] in new_ids
        ]
    return tokenizer, kept


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if isinstance(model["vocab"], dict):
        return model["vocab"]
    return {token: index for index, (token, _) in enumerate(model["vocab"])}  # Unigram: tokens with their scores


def _embed(encoder: Any, token_ids: list[int]) -> np.ndarray:
    """Embed each token between the encoder's special tokens, float32 [tokens, dimensions]."""
    import torch

    framed = encoder.tokenizer("a", return_special_tokens_mask=True)
    special = framed["special_tokens_mask"]
    first, last = special.index(0), len(special) - special[::-1].index(0)
    before, after = framed["input_ids"][:first], framed["input_ids"][last:]
    rows = []
    with torch.inference_mode():
        for start in range(0, len(token_ids), _BATCH_SIZE):
            ids = torch.tensor(
                [[*before, token, *after] for token in token_ids[start : start + _BATCH_SIZE]], device=encoder.device
            )
            outputs = encoder({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            rows.append(outputs["sentence_embedding"].float().cpu().numpy())
    return np.concatenate(rows)
