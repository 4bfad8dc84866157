"""Accuracy with few examples: training and evaluation data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.tools.bench import few
from vllm_lora_router.tools.data.examples import Example

# A text is an angle in degrees; travel is around 90, banking around 0.
TRAIN = [Example(text, "travel", "flight") for text in ("80", "95", "100")]
TRAIN += [Example(text, "banking", "balance") for text in ("0", "10", "-10")]
EVALUATED = [Example("5", "banking", "balance"), Example("85", "travel", "flight"), Example("-40", "travel", "flight")]
NAMES = {"banking": "0", "travel": "-40"}  # embeddings of the domain names


@pytest.fixture
def circle(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(texts: Sequence[str]) -> np.ndarray:
        angles = np.deg2rad([float(NAMES.get(text, text)) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    monkeypatch.setattr(few, "encoder_of", lambda model, runtime: encode)


def test_frozen_encoder_is_evaluated_on_unseen_questions(circle: None) -> None:
    accuracy = few.frozen(TRAIN, EVALUATED, "any", names=False)
    assert accuracy([0, 1, 3, 4], 0) == pytest.approx(2 / 3)  # the last is near banking


def test_domain_names_are_used_in_addition_to_examples(circle: None) -> None:
    assert few.frozen(TRAIN, EVALUATED, "any", names=True)([0, 1, 3, 4], 0) == 1


def test_finetuning_does_not_use_intents(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def train_classifier(examples: Sequence[Example], categories: Sequence[str], model: str, *, seed: int) -> str:
        calls.append((examples, categories, model, seed))
        return "trained"

    def predict_logits(model: str, texts: Sequence[str]) -> np.ndarray:
        assert (model, texts) == ("trained", ["5", "85", "-40"])
        return np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])  # banking, travel

    monkeypatch.setattr(few, "train_classifier", train_classifier)
    monkeypatch.setattr(few, "predict_logits", predict_logits)
    assert few.finetuned(TRAIN, EVALUATED, "folder")([4, 0], 7) == pytest.approx(2 / 3)
    assert calls == [([Example("10", "banking"), Example("80", "travel")], ["banking", "travel"], "folder", 7)]
