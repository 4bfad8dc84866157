"""Any sentence encoder as a static one: every token of its vocabulary goes through it once, alone."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Weighs a token against its frequency: from Arora et al. 2017, "A Simple but Tough-to-Beat Baseline for Sentence
# Embeddings", where it is called a; this value is theirs at best, and model2vec's.
SIF = 1e-4
_BATCH = 512  # of a few tokens each
_UNUSED = re.compile(r"\[unused\d+\]")
_RENUMBERED = ("WordPiece", "WordLevel")  # elsewhere tokens refer to one another, by merges or by their place


class DistillError(ValueError):
    """A model that cannot be distilled, or not to there; the message names it and the way out."""


@dataclass(frozen=True)
class Distilled:
    """What was written."""

    folder: Path
    tokens: int
    dimensions: int
    kept: float  # share of the variance of the encoder's embeddings, 0 to 1


def distill(model: str, folder: Path, *, dimensions: int = 256) -> Distilled:
    """Writes a static encoder of model2vec's format into `folder`, which is made where it is not there.

    A token's vector is the encoder's embedding of that token alone, projected on the principal components of all
    tokens' and weighed by its rank in the vocabulary, which stands for its frequency. The idea is model2vec's
    (https://github.com/MinishLab/model2vec).

    Args:
        model: a folder or a hub id of a sentence-transformers encoder.
        dimensions: of the vectors, at most the encoder's own.

    Raises:
        DistillError: a package is not installed, the model cannot be loaded or has no fast tokenizer, it has fewer
            dimensions or tokens than asked for, or the folder holds something already.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DistillError(f"{folder}: is there already and is not an empty folder; name another one")
    try:
        from model2vec import StaticModel
        from sklearn.decomposition import PCA
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _missing(error) from None
    encoder = _load(model)
    if getattr(encoder.tokenizer, "backend_tokenizer", None) is None:
        raise DistillError(f"{model}: has no fast tokenizer of transformers, which a static encoder is made of")
    tokenizer, tokens = _bare(json.loads(encoder.tokenizer.backend_tokenizer.to_str()))
    if tokens[-1] >= len(tokens) and tokenizer["model"]["type"] not in _RENUMBERED:
        raise DistillError(f"{model}: the numbers of its tokens have gaps, which model2vec's format does not allow")
    own = _embed(encoder, tokens[:1]).shape[1]
    if not 0 < dimensions <= min(own, len(tokens)):
        raise DistillError(
            f"{model}: {dimensions} dimensions cannot be had from {own} dimensions and {len(tokens)} tokens; "
            f"ask for 1 to {min(own, len(tokens))}"
        )
    components = PCA(dimensions, svd_solver="covariance_eigh")
    vectors = components.fit_transform(_embed(encoder, tokens)) * sif_weights(len(tokens))[:, None]
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
    # safetensors 0.8 writes it for its owner alone, who need not be who serves.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
    # It says that the model is under the MIT licence, which is for the encoder's own card to say.
    (folder / "README.md").unlink(missing_ok=True)
    return Distilled(folder, len(tokens), dimensions, float(components.explained_variance_ratio_.sum()))


def sif_weights(tokens: int) -> np.ndarray:
    """float64 [tokens]: SIF / (SIF + p), p being a token's frequency as Zipf's law has it from its rank.

    Vocabularies are ordered by frequency, all but some; ranks start at 2 as model2vec's do.
    """
    frequencies = 1 / np.arange(2, tokens + 2)
    return SIF / (SIF + frequencies / frequencies.sum())


def _load(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer

        from vllm_lora_router.classifiers.models import encoder
    except ImportError as error:
        raise _missing(error) from None
    source = None if Path(model).exists() else encoder.packaged(model)
    try:
        return SentenceTransformer(source or model, device=encoder.torch_device("auto")).eval()
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise DistillError(
            f"{model}: cannot be loaded by sentence-transformers: no such model in this folder, or not to be had from "
            f"the hub ({why}); name a folder, or pip install 'vllm-lora-router[demo]' for "
            "sentence-transformers/all-MiniLM-L6-v2"
        ) from None


def _missing(error: ImportError) -> DistillError:
    return DistillError(f"distilling needs more ({error}); pip install 'vllm-lora-router[static,train]'")


def _bare(tokenizer: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """A tokenizer.json that adds, cuts and fills up nothing, and the encoder's id of each of its tokens."""
    ids = {**_vocabulary(tokenizer["model"]), **{added["content"]: added["id"] for added in tokenizer["added_tokens"]}}
    kept = sorted(ids.values())
    tokenizer = {**tokenizer, "truncation": None, "padding": None, "post_processor": None}
    if tokenizer["model"]["type"] in _RENUMBERED:
        kept = sorted(number for token, number in ids.items() if not _UNUSED.fullmatch(token))
        place = {number: index for index, number in enumerate(kept)}
        vocabulary = tokenizer["model"]["vocab"]
        tokenizer["model"] = {
            **tokenizer["model"],
            "vocab": {token: place[number] for token, number in vocabulary.items() if number in place},
        }
        tokenizer["added_tokens"] = [
            {**added, "id": place[added["id"]]} for added in tokenizer["added_tokens"] if added["id"] in place
        ]
    return tokenizer, kept


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if isinstance(model["vocab"], dict):
        return model["vocab"]
    return {token: index for index, (token, _) in enumerate(model["vocab"])}  # Unigram: tokens and their scores


def _embed(encoder: Any, tokens: list[int]) -> np.ndarray:
    """float32 [tokens, the encoder's dimensions]: each between the special tokens that a text stands between."""
    import torch

    framed = encoder.tokenizer("a", return_special_tokens_mask=True)
    special = framed["special_tokens_mask"]
    first, last = special.index(0), len(special) - special[::-1].index(0)
    before, after = framed["input_ids"][:first], framed["input_ids"][last:]
    rows = []
    with torch.inference_mode():
        for start in range(0, len(tokens), _BATCH):
            ids = torch.tensor(
                [[*before, token, *after] for token in tokens[start : start + _BATCH]], device=encoder.device
            )
            found = encoder({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            rows.append(found["sentence_embedding"].float().cpu().numpy())
    return np.concatenate(rows)
