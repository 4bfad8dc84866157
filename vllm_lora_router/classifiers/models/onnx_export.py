"""`python -m vllm_lora_router.classifiers.models.onnx_export KIND MODEL FOLDER`: a model as ONNX, exact and int8."""

import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_lora_router.classifiers.models.onnx_runtime import ABOUT, EXACT, INT8, Exported, OnnxNetwork
from vllm_lora_router.classifiers.models.pytorch import longest

# Texts of several lengths, in one batch: what the graph must say the same of as torch.
TEXTS = ("What does this mean?", "Why?", "My landlord keeps my deposit, and I do not know what to do about it. " * 4)
TOLERANCE = 1e-3


def main(argv: Sequence[str]) -> None:
    """Writes `model.onnx`, `model.int8.onnx` and `export.json`; ends with an error when they say other than torch."""
    kind, source, folder = argv
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    module, tokenizer, about = _load(kind, source)
    _write(module, tokenizer, Path(folder))
    (Path(folder) / ABOUT).write_text(json.dumps(about))
    exported = Exported(Path(folder), about["longest"], about["prompt"])
    _check(module, tokenizer, OnnxNetwork(exported, tokenizer, int8=False), about)


def _load(kind: str, source: str) -> tuple[Any, Any, dict[str, Any]]:
    """A module from `input_ids` and `attention_mask` to one row a text, its tokenizer, and what is not in the graph."""
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
        return Logits(model).eval(), tokenizer, {"longest": longest(tokenizer, model.config), "prompt": ""}
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(source, device="cpu")
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    about = {"longest": int(model.max_seq_length or 512), "prompt": prompt}
    return Embedding(model).eval(), model.tokenizer, about


def _write(module: Any, tokenizer: Any, folder: Path) -> None:
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.inference_mode():
        torch.onnx.export(
            module,
            (batch["input_ids"], batch["attention_mask"]),
            str(folder / EXACT),
            input_names=["input_ids", "attention_mask"],
            output_names=["outputs"],
            dynamic_shapes=(shape, shape),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    # Without VNNI a CPU adds two products of full range in sixteen bits, which overflows.
    quantize_dynamic(folder / EXACT, folder / INT8, weight_type=QuantType.QInt8, reduce_range=True, per_channel=True)


def _check(module: Any, tokenizer: Any, network: OnnxNetwork, about: dict[str, Any]) -> None:
    import torch

    for texts in (TEXTS, TEXTS[:1], TEXTS[1:2]):
        batch = tokenizer([about["prompt"] + text for text in texts], padding=True, return_tensors="pt")
        with torch.inference_mode():
            right = module(batch["input_ids"], batch["attention_mask"]).numpy()
        off = float(abs(network(texts, about["longest"]) - right).max())
        if not off <= TOLERANCE:
            sys.exit(f"its graph is off by {off:.2g} from what torch says")


if __name__ == "__main__":
    main(sys.argv[1:])
