"""Batches padded to the sizes of CUDA graphs, with a plain call in place of a captured graph."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from vllm_lora_router.classifiers.models.cuda_graphs import CudaGraphs
from vllm_lora_router.tools.bench.shapes import write_model

PAD = 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("model")
    write_model("MiniLM", folder)
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


class Captures:
    """Repeat a forward pass over the same tensors, as a graph does, and count."""

    def __init__(self, spoil: float = 0.0) -> None:
        self.captured = self.replayed = 0
        self.spoil = spoil

    def __call__(self, run: Any) -> Any:
        self.captured += 1

        def replay() -> Any:
            self.replayed += 1
            return run() + self.spoil

        return replay


def graphs(model: Any, captures: Any, **more: Any) -> CudaGraphs:
    def forward(ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask).logits

    with torch.inference_mode():
        sizes = {"counts": (1, 2, 4), "lengths": (8, 16, 64), "longest": 64, **more}
        return CudaGraphs(forward, pad=PAD, device="cpu", capture=captures, **sizes)


def batch(draw: random.Random, count: int, longest: int) -> tuple[Any, Any]:
    """Return texts of random lengths, the first one of the given length."""
    ids, mask = torch.zeros(2, count, longest, dtype=torch.int64)
    for row in range(count):
        length = longest if row == 0 else draw.randint(1, longest)
        ids[row, :length] = torch.tensor([draw.randrange(4, 4000) for _ in range(length)])
        mask[row, :length] = 1
    return ids, mask


def test_a_batch_of_any_size_scores_the_same_as_without_graphs(model: Any) -> None:
    captures, draw = Captures(), random.Random(1)
    replaying = graphs(model, captures)
    assert len(replaying) == captures.captured == 9
    captures.replayed = 0
    sizes = [(draw.randint(1, 4), draw.randint(1, 64)) for _ in range(40)] + [(1, 1), (4, 64), (1, 64), (4, 1)]
    with torch.inference_mode():
        for count, longest in sizes:
            ids, mask = batch(draw, count, longest)
            replayed = replaying(ids, mask)
            assert replayed.shape == (count, 4)
            right = model(input_ids=ids, attention_mask=mask).logits
            assert float((replayed - right).abs().max()) <= 1e-3
    assert captures.replayed == len(sizes)


@pytest.mark.parametrize(("count", "longest"), [(5, 16), (2, 65)])
def test_a_batch_larger_than_every_graph_runs_without_graphs(model: Any, count: int, longest: int) -> None:
    captures = Captures()
    replaying = graphs(model, captures)
    captures.replayed = 0
    ids, mask = batch(random.Random(2), count, longest)
    with torch.inference_mode():
        right = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(replaying(ids, mask), right) and captures.replayed == 0


def test_no_graph_is_longer_than_the_models_context(model: Any) -> None:
    assert len(graphs(model, Captures(), longest=16)) == 6


def fails(run: Any) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("captures", "message"), [(fails, "not permitted when stream is capturing"), (Captures(spoil=1.0), "differs by")]
)
def test_a_model_that_cannot_be_captured_runs_without_graphs(
    model: Any, captures: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    launching = graphs(model, captures)
    assert len(launching) == 0 and message in caplog.text
    ids, mask = batch(random.Random(3), 2, 8)
    with torch.inference_mode():
        assert torch.equal(launching(ids, mask), model(input_ids=ids, attention_mask=mask).logits)
