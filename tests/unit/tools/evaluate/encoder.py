"""A static encoder of a few words in model2vec's format, for embedding rules without torch."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

needs_encoder = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("model2vec", "transformers")),
    reason="needs model2vec and transformers",
)

# Cosine of each word with `medicine` and with `law`.
VECTORS = {
    "medicine": (1.0, 0.0),
    "law": (0.0, 1.0),
    "fever": (0.9, 0.1),
    "cough": (0.7, 0.2),
    "knee": (0.5, 0.3),
    "judge": (0.1, 0.9),
    "lawsuit": (0.2, 0.7),
    "rent": (0.3, 0.5),
    "weather": (0.4, 0.2),
}

RULES = """
classifier: {embedding_model: {model_id: encoder}}
model_config: {base: {loras: [{name: medical-lora}, {name: legal-lora}]}}
default_model: base
embedding_rules:
  - {category: medical, threshold: 0.6, candidates: [medicine]}
  - {category: legal, threshold: 0.6, candidates: [law]}
categories:
  - {name: medical, model_scores: [{model: base, lora_name: medical-lora}]}
  - {name: legal, model_scores: [{model: base, lora_name: legal-lora}]}
"""


def write_encoder(folder: Path) -> None:
    """Write the encoder; unknown words have a zero vector."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(("[PAD]", "[UNK]", *VECTORS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # The third component makes each vector's length 1.
    rows = [(x, y, (1 - x**2 - y**2) ** 0.5) for x, y in VECTORS.values()]
    vectors = np.array([(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), *rows], dtype=np.float32)
    StaticModel(vectors, tokenizer, {"model_type": "model2vec"}, normalize=True).save_pretrained(folder)
