"""Fine-tuning of an encoder into a sequence classifier."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.domain import DomainScorer
from vllm_lora_router.classifiers.labels import map_labels, read_labels
from vllm_lora_router.classifiers.models.registry import ModelRegistry
from vllm_lora_router.config import load
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.fit.finetune.finetune import finetune

for name in ("torch", "transformers", "sentence_transformers", "sklearn"):
    pytest.importorskip(name)

WORDS = {"medical": ("fever", "cough", "pain"), "legal": ("court", "judge", "law")}
CONFIG = """
classifier: {category_model: {model_id: tuned, threshold: 0.5}}
model_config: {base: {loras: []}}
default_model: base
categories: [{name: medical, model_scores: [{model: base}]}, {name: legal, model_scores: [{model: base}]}]
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a BERT with random weights and a vocabulary of a few words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    tokens = (*specials, *(word for words in WORDS.values() for word in words), *(f"w{n}" for n in range(20)))
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model("bert", vocab_size=len(tokens), pad_token_id=0, initializer_range=0.3, **sizes)
    AutoModel.from_config(config).save_pretrained(folder)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), specials, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    return folder


def examples_of(count: int) -> list[Example]:
    rows = [
        Example(f"{words[n % 3]} w{n % 20} {words[(n + 1) % 3]}", category)
        for category, words in WORDS.items()
        for n in range(count)
    ]
    return [*rows, Example("w1 w2 w3", None), Example("w4 w5 w6", None)]


def test_written_model_is_a_domain_model(encoder: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    output = tmp_path / "tuned"
    result = finetune(examples_of(30), str(encoder), output, on_step=lambda *step: steps.append(step))
    assert (result.categories, result.held_out) == (("medical", "legal"), 60)
    assert (
        result.accuracy >= 0.9 and abs(result.macro_f1 - result.accuracy) < 0.05
    )  # each category has the same number of examples
    assert steps[-1] == (result.steps, result.steps)
    assert json.loads((tmp_path / "tuned" / "category_mapping.json").read_text()) == {
        "category_to_idx": {"medical": 0, "legal": 1},
        "idx_to_category": {"0": "medical", "1": "legal"},
    }
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    loaded = load(file)
    labels = read_labels(loaded)
    scorer = DomainScorer(
        loaded, labels, map_labels(labels, loaded.config, lambda: pytest.fail("by name")), ModelRegistry()
    )
    (scores,) = scorer.score(["fever pain w7", "the judge w9 law"])
    assert scores.values.argmax(axis=1).tolist() == [0, 1]


def test_same_seed_writes_the_same_model(encoder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    for name in ("first", "second"):
        finetune(examples_of(4), str(encoder), tmp_path / name, seed=2, epochs=1)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_unusable_input_is_reported_and_nothing_is_written(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two categories"):
        finetune(
            [example for example in examples_of(3) if example.category == "legal"], str(encoder), tmp_path / "tuned"
        )
    with pytest.raises(ClassifierError, match="nowhere"):
        finetune(examples_of(3), str(tmp_path / "nowhere"), tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    with pytest.raises(DataError, match="not an empty folder"):
        finetune(examples_of(3), str(encoder), encoder)
