"""Models that torch runs, as sentence-transformers and transformers load them."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from vllm_lora_router.classifiers.models.cuda_graphs import Forward, Graphs, cuda_capture

# Held while a model is loaded: transformers changes torch's defaults meanwhile, for all threads.
LOAD_LOCK = threading.Lock()


class SentenceNetwork:
    """A sentence encoder: texts to unit vectors."""

    on_any_thread = False

    def __init__(self, model: Any) -> None:
        """Takes a `sentence_transformers.SentenceTransformer`."""
        self._model = model
        self.tokenizer = model.tokenizer
        self.longest = int(model.max_seq_length or 512)
        self.runs_on = f"torch, {model.device}"

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        self._model.max_seq_length = min(max_tokens, self.longest)
        rows = self._model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return rows.astype(np.float32)


class SequenceNetwork:
    """A sequence classifier: texts to logits."""

    on_any_thread = False

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:
        """Takes a model of transformers, in evaluation mode on its device."""
        import torch

        self._torch, self._model = torch, model
        self.tokenizer = tokenizer
        self.longest = longest(tokenizer, model.config)
        self.runs_on = f"torch, {device}"
        self._forward: Forward = self._launch
        if device.startswith("cuda"):
            with torch.inference_mode(), torch.cuda.device(device):
                graphs = Graphs(
                    self._launch,
                    pad=int(tokenizer.pad_token_id or 0),
                    device=device,
                    longest=self.longest,
                    capture=cuda_capture(),
                )
            torch.cuda.empty_cache()  # what only the warm-ups needed
            self._forward = graphs
            self.runs_on += ", CUDA graphs" if len(graphs) else ""

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=min(max_tokens, self.longest), return_tensors="pt"
        ).to(self._model.device)
        with self._torch.inference_mode():
            return self._forward(batch["input_ids"], batch["attention_mask"]).float().cpu().numpy()

    def _launch(self, ids: Any, mask: Any) -> Any:
        return self._model(input_ids=ids, attention_mask=mask).logits


def longest(tokenizer: Any, config: Any) -> int:
    """The tokens that a model of transformers reads, special ones included."""
    return min(int(tokenizer.model_max_length), int(getattr(config, "max_position_embeddings", 512)))
