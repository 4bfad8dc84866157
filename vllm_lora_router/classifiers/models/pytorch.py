"""Models that run with torch, loaded by sentence-transformers or transformers."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from vllm_lora_router.classifiers.models.cuda_graphs import CudaGraphs, Forward, cuda_capture

# Held while a model is loaded, because transformers changes torch's defaults for all threads during that time.
LOAD_LOCK = threading.Lock()


class TorchSentenceModel:
    """A sentence encoder: maps texts to unit vectors."""

    thread_safe = False

    def __init__(self, model: Any) -> None:
        """Wrap a `sentence_transformers.SentenceTransformer`."""
        self._model = model
        self.tokenizer = model.tokenizer
        self.max_length = int(model.max_seq_length or 512)
        self.runs_on = f"torch, {model.device}"

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        self._model.max_seq_length = min(max_tokens, self.max_length)
        rows = self._model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return rows.astype(np.float32)


class TorchSequenceClassifier:
    """A sequence classifier: maps texts to logits."""

    thread_safe = False

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:
        """Wrap a transformers model that is in evaluation mode and on its device."""
        import torch

        self._torch, self._model = torch, model
        self.tokenizer = tokenizer
        self.max_length = max_length(tokenizer, model.config)
        self.runs_on = f"torch, {device}"
        self._forward: Forward = self._run_model
        if device.startswith("cuda"):
            with torch.inference_mode(), torch.cuda.device(device):
                graphs = CudaGraphs(
                    self._run_model,
                    pad=int(tokenizer.pad_token_id or 0),
                    device=device,
                    longest=self.max_length,
                    capture=cuda_capture(),
                )
            torch.cuda.empty_cache()  # releases the memory that only the warm-ups needed
            self._forward = graphs
            self.runs_on += ", CUDA graphs" if len(graphs) else ""

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        limit = min(max_tokens, self.max_length)
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt").to(
            self._model.device
        )
        with self._torch.inference_mode():
            return self._forward(batch["input_ids"], batch["attention_mask"]).float().cpu().numpy()

    def _run_model(self, ids: Any, mask: Any) -> Any:
        return self._model(input_ids=ids, attention_mask=mask).logits


def max_length(tokenizer: Any, config: Any) -> int:
    """Return the maximum number of tokens that a transformers model reads, including special tokens."""
    return min(int(tokenizer.model_max_length), int(getattr(config, "max_position_embeddings", 512)))
