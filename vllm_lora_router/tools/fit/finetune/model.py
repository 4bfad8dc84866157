"""Sequence classifiers of transformers that start from a sentence encoder's own embedding."""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models.source import packaged, torch_device

# Model types with BERT's layer names, whose heads read the first token of the last layer.
_BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert")
MAX_TOKENS = 256  # per text; enough to recognise a category
_MEAN_WEIGHT = 16.0  # weight of the tokens' mean relative to the first token, which the residual connection adds to it
_POOLER_WEIGHT = 0.3  # so small that the tanh between pooler and head is nearly linear


@dataclass(frozen=True, eq=False)
class SequenceModel:
    """A sequence classifier in training."""

    network: Any  # of transformers
    tokenizer: Any
    has_pooling_layer: bool  # whether the last layer was added by `load_model`

    def __call__(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Return the logits, [texts, labels], and the last layer's output for the first token, [texts, width]."""
        max_length = min(MAX_TOKENS, int(self.tokenizer.model_max_length), self.network.config.max_position_embeddings)
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        output = self.network(**batch.to(self.network.device), output_hidden_states=True)
        return output.logits, output.hidden_states[-1][:, 0]

    def layers(self) -> list[Any]:
        """Return the encoder's layers, lowest first."""
        network = self.network.base_model
        for name in ("encoder.layer", "layers", "transformer.layer"):
            try:
                return list(network.get_submodule(name))
            except AttributeError:
                continue
        return []

    def head(self) -> tuple[Any, Any]:
        """Return the layer before the tanh, and the layer that computes the logits; needs a pooling layer."""
        if self.network.config.model_type == "bert":
            return self.network.base_model.pooler.dense, self.network.classifier
        return self.network.classifier.dense, self.network.classifier.out_proj


def load_model(model: str, labels: Sequence[str]) -> SequenceModel:
    """Load an encoder with a head of one output per label, on the GPU if there is one.

    Sequence classifiers read the first token, but sentence encoders are trained for the mean of all tokens: with
    all-MiniLM-L6-v2, the first token alone is ten points less accurate. If the encoder has BERT's architecture, a layer
    is added that computes this mean for the first token: its queries are zero, so it attends to all tokens equally.
    Its feed-forward part and the head output zero at first.

    Args:
        model: A folder or a Hub id.
        labels: Names of the outputs.

    Raises:
        ClassifierError: A package is not installed, or the model cannot be loaded.
    """
    try:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise ClassifierError(
            f"fit --finetune needs more packages ({error}); pip install 'vllm-lora-router[train]'"
        ) from None
    source = model if Path(model).exists() else packaged(model) or model
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(
                source,
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                problem_type="single_label_classification",
            )
            has_pooling_layer = config.model_type in _BERT_LIKE
            if has_pooling_layer:
                config.num_hidden_layers += 1
            if config.model_type == "modernbert":
                config.classifier_pooling = pooling_mode(source)
            tokenizer = AutoTokenizer.from_pretrained(source)
            network = AutoModelForSequenceClassification.from_pretrained(source, config=config, dtype=torch.float32)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ClassifierError(
            f"{model}: cannot be loaded as a sequence classifier by transformers; neither this folder nor the Hub has "
            f"such a model ({reason}); name a folder, or pip install 'vllm-lora-router[demo]' for "
            "sentence-transformers/all-MiniLM-L6-v2"
        ) from None
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        # Some encoders' tokenizer files pad and truncate all texts to 128 tokens; the caller decides that here.
        backend.no_padding()
        backend.no_truncation()
    result = SequenceModel(network.to(torch_device("auto")), tokenizer, has_pooling_layer)
    if has_pooling_layer:
        _initialise_pooling(result, pooling_mode(source))
    return result


def pooling_mode(source: str) -> str:
    """Return how a sentence encoder pools its tokens: `cls`, or `mean`, the most common mode."""
    try:
        config = json.loads((Path(source) / "1_Pooling" / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return "mean"
    return "cls" if config.get("pooling_mode_cls_token") or config.get("pooling_mode") == "cls" else "mean"


def _initialise_pooling(model: SequenceModel, mode: str) -> None:
    import torch
    from torch.nn.init import constant_, eye_, ones_, zeros_

    layer = model.layers()[-1]
    attention, output = layer.attention, layer.output
    pooler, head = model.head()
    with torch.no_grad():
        for module in (attention.self.query, output.dense, head):
            zeros_(module.weight)
        for linear in (attention.self.query, attention.self.key, attention.self.value, attention.output.dense):
            zeros_(linear.bias)
        for linear in (output.dense, pooler, head):
            zeros_(linear.bias)
        for norm in (attention.output.LayerNorm, output.LayerNorm):
            ones_(norm.weight)
            zeros_(norm.bias)
        for linear in (attention.self.value, attention.output.dense):
            eye_(linear.weight).mul_(_MEAN_WEIGHT**0.5 if mode == "mean" else 0.0)
        eye_(pooler.weight).mul_(_POOLER_WEIGHT)
        constant_(layer.intermediate.dense.bias, 0.0)


@contextmanager
def _quiet() -> Iterator[None]:
    # transformers reports every weight of the added layer as missing.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
