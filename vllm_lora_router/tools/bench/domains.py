"""Measure the accuracy of a head on sentence embeddings for the ten domains of CLINC150.

Source: Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction"; out-of-scope
questions are left out.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from vllm_lora_router.classifiers.models import onnx_runtime
from vllm_lora_router.classifiers.models.pytorch import TorchSentenceModel
from vllm_lora_router.classifiers.models.source import packaged
from vllm_lora_router.config.schema import Runtime
from vllm_lora_router.tools.bench.datasets import clinc150

Encode = Callable[[Sequence[str]], np.ndarray]  # texts -> unit rows, shape (texts, dimensions)
Split = Literal["train", "val", "test"]

# Hyperparameters, chosen on the validation split.
CS = (3.0, 10.0, 30.0)
GAMMAS = (1.0, 2.0, 4.0)
QUESTION = "could you please tell me what the current balance of my savings account is right now"  # 16 tokens
_BATCH = 64


@dataclass(frozen=True)
class Head:
    """A support vector machine with an RBF kernel and its hyperparameters."""

    model: Any  # sklearn.svm.SVC
    c: float
    gamma: float
    validation: float  # accuracy, 0 to 1

    def __call__(self, rows: np.ndarray) -> Sequence[str]:
        """Return the domain of each row."""
        return self.model.predict(rows)


def questions(data: Path, split: Split) -> tuple[list[str], list[str]]:
    """Return the questions of a split and their domains.

    Args:
        data: a folder with `data_full.json` of clinc/oos-eval and `domains.json` (domain -> intents).
    """
    examples = [example for example in clinc150(data, split) if example.category is not None]
    return [example.text for example in examples], [example.category or "" for example in examples]


def fit_head(encode: Encode, data: Path, *, cs: Sequence[float] = CS, gammas: Sequence[float] = GAMMAS) -> Head:
    """Return the head fitted on the train split with the best validation accuracy (needs scikit-learn)."""
    from sklearn.svm import SVC

    (texts, domains), (val_texts, val_domains) = questions(data, "train"), questions(data, "val")
    rows, val_rows = _rows(encode, texts), _rows(encode, val_texts)
    best: Head | None = None
    for c, gamma in product(cs, gammas):
        settings: dict[str, Any] = {"C": c, "gamma": gamma}
        model = SVC(cache_size=500, **settings).fit(rows, domains)  # cache_size in MB
        head = Head(model, c, gamma, float(model.score(val_rows, val_domains)))
        if best is None or head.validation > best.validation:
            best = head
    assert best is not None
    return best


def score_head(head: Head, encode: Encode, data: Path) -> float:
    """Return a head's accuracy on the test split; `encode` may differ from the encoder it was fitted on."""
    texts, domains = questions(data, "test")
    return float(np.mean(np.asarray(head(_rows(encode, texts))) == np.asarray(domains)))


def accuracy(encode: Encode, data: Path) -> float:
    """Return the accuracy on the test split, between 0 and 1."""
    return score_head(fit_head(encode, data), encode, data)


def ms_per_text(run: Callable[[Sequence[str]], Any], *, text: str = QUESTION, times: int = 2000) -> tuple[float, float]:
    """Return the shortest and the median time for one text, in milliseconds."""
    durations = []
    for _ in range(times):
        began = time.perf_counter()
        run([text])
        durations.append((time.perf_counter() - began) * 1000)
    return min(durations), float(np.median(durations))


def main() -> int:
    """Print the figures of each model."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.bench.domains", description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with CLINC150's data_full.json and domains.json")
    parser.add_argument("models", nargs="+", help="folders of static encoders, or sentence-transformers encoders")
    parser.add_argument(
        "--runtime",
        nargs="+",
        default=["torch"],
        choices=("torch", "onnx", "onnx-int8"),
        help="runtimes of transformer encoders (default: torch)",
    )
    args = parser.parse_args()
    table = Table("encoder", "C", "gamma", "validation", "test", "encode ms", "with head ms", "support vectors")
    table.title = "accuracy over ten domains, head fitted on the first runtime; ms: shortest, median"
    console = Console()
    head: Head | None = None
    for model, runtime in product(args.models, args.runtime):
        encode = encoder_of(model, runtime)
        with console.status(model):
            if head is None or runtime == args.runtime[0]:
                head = fit_head(encode, args.data)
            figures = (head.c, head.gamma, head.validation, score_head(head, encode, args.data))
            alone = ms_per_text(encode)
            both = ms_per_text(lambda texts, head=head, encode=encode: head(encode(texts)))
        times = (f"{least:.3f}, {median:.3f}" for least, median in (alone, both))
        table.add_row(
            f"{Path(model).name}, {runtime}",
            *(f"{value:.4g}" for value in figures),
            *times,
            str(head.model.n_support_.sum()),
        )
    console.print(table)
    return 0


def _rows(encode: Encode, texts: Sequence[str]) -> np.ndarray:
    # Texts of similar length share a batch, so that little padding is computed.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    batches = [
        encode([texts[index] for index in order[start : start + _BATCH]]) for start in range(0, len(order), _BATCH)
    ]
    rows = np.concatenate(batches)
    return rows[np.argsort(order)]


def encoder_of(model: str, runtime: Runtime) -> Encode:
    """Return an encoder as a function; `model` is a folder, a packaged model or a hub id."""
    from vllm_lora_router.classifiers.models.static_embeddings import is_static, load_static

    if is_static(Path(model)):
        return partial(load_static(Path(model)), max_tokens=512)
    source = model if Path(model).exists() else packaged(model) or model
    if runtime != "torch":
        return partial(onnx_runtime.load("embedding", source, int8=runtime == "onnx-int8"), max_tokens=512)
    from sentence_transformers import SentenceTransformer

    return partial(TorchSentenceModel(SentenceTransformer(source)), max_tokens=512)


if __name__ == "__main__":
    raise SystemExit(main())
