"""Export a model to ONNX in float32 and int8.

Usage: python -m vllm_lora_router.classifiers.models.onnx_export KIND MODEL FOLDER
"""

import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_lora_router.classifiers.models.onnx_runtime import (
    FLOAT32_FILE,
    INT8_FILE,
    METADATA_FILE,
    ExportedModel,
    OnnxModel,
)
from vllm_lora_router.classifiers.models.pytorch import max_length
from vllm_lora_router.classifiers.models.source import check_classes

# Texts of different lengths in one batch. The graph and torch must give the same outputs for them.
TEXTS = ("What does this mean?", "Why?", "My landlord keeps my deposit, and I do not know what to do about it. " * 4)
TOLERANCE = 1e-3


def main(argv: Sequence[str]) -> None:
    """Write `model.onnx`, `model.int8.onnx` and `export.json`. Exit with an error if the graph differs from torch."""
    kind, source, folder = argv
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    module, tokenizer, metadata = _load(kind, source)
    _write(module, tokenizer, Path(folder))
    (Path(folder) / METADATA_FILE).write_text(json.dumps(metadata))
    exported = ExportedModel(Path(folder), metadata["longest"], metadata["prompt"])
    _check(module, tokenizer, OnnxModel(exported, tokenizer, int8=False), metadata)


def _load(kind: str, source: str) -> tuple[Any, Any, dict[str, Any]]:
    """Return a module from ids and mask to one row for each text, its tokenizer, and the settings outside the graph."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    class Logits(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    class Embedding(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            return torch.nn.functional.normalize(self.model(features)["sentence_embedding"], dim=-1)

    tokenizer = AutoTokenizer.from_pretrained(source)
    if kind == "domain":
        model = AutoModelForSequenceClassification.from_pretrained(source, use_safetensors=True)
        return Logits(model).eval(), tokenizer, {"longest": max_length(tokenizer, model.config), "prompt": ""}
    from sentence_transformers import SentenceTransformer

    check_classes(Path(source))
    model = SentenceTransformer(source, device="cpu")
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    metadata = {"longest": int(model.max_seq_length or 512), "prompt": prompt}
    return Embedding(model).eval(), model.tokenizer, metadata


def _write(module: Any, tokenizer: Any, folder: Path) -> None:
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.inference_mode():
        torch.onnx.export(
            module,
            (batch["input_ids"], batch["attention_mask"]),
            str(folder / FLOAT32_FILE),
            input_names=["input_ids", "attention_mask"],
            output_names=["outputs"],
            dynamic_shapes=(shape, shape),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    # Reduced range, because a CPU without VNNI adds two full-range products in 16 bits, which overflows.
    quantize_dynamic(
        folder / FLOAT32_FILE, folder / INT8_FILE, weight_type=QuantType.QInt8, reduce_range=True, per_channel=True
    )


def _check(module: Any, tokenizer: Any, model: OnnxModel, metadata: dict[str, Any]) -> None:
    import torch

    for texts in (TEXTS, TEXTS[:1], TEXTS[1:2]):
        batch = tokenizer([metadata["prompt"] + text for text in texts], padding=True, return_tensors="pt")
        with torch.inference_mode():
            expected = module(batch["input_ids"], batch["attention_mask"]).numpy()
        difference = float(abs(model(texts, metadata["longest"]) - expected).max())
        if not difference <= TOLERANCE:
            sys.exit(f"the ONNX graph differs by {difference:.2g} from torch")


if __name__ == "__main__":
    main(sys.argv[1:])
