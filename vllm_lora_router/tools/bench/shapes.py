"""Create domain models with random weights: their speed does not depend on the weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LABELS = ("law", "health", "code", "other")
WORDS = 4096  # every word is one token, so that a text has as many tokens as words

# The configurations of all-MiniLM-L6-v2 and answerdotai/ModernBERT-base, except for the vocabulary.
SHAPES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "MiniLM": (
        "bert",
        {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "max_position_embeddings": 512,
        },
    ),
    "ModernBERT-base": (
        "modernbert",
        {
            "hidden_size": 768,
            "num_hidden_layers": 22,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
            "max_position_embeddings": 8192,
        },
    ),
}


def write_model(shape: str, folder: Path, *, seed: int = 0) -> None:
    """Write a sequence classifier of a shape with its tokenizer and label mapping."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    kind, settings = SHAPES[shape]
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {token: index for index, token in enumerate((*specials, *(word(number) for number in range(WORDS))))}
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = AutoConfig.for_model(kind, vocab_size=len(vocabulary), num_labels=len(LABELS), **ids, **settings)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=settings["max_position_embeddings"],
    ).save_pretrained(folder)
    mapping = {"idx_to_category": {str(index): label for index, label in enumerate(LABELS)}}
    (folder / "category_mapping.json").write_text(json.dumps(mapping))


def word(number: int) -> str:
    """Return a word that is one token."""
    return f"w{number % WORDS}"
