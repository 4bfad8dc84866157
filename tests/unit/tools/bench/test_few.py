"""What few examples are worth: which of them are learnt, and by what they are judged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.tools.bench import few
from vllm_lora_router.tools.data.examples import Example

# A text is its place on a circle, in degrees; travel lies around 90, banking around 0.
TRAIN = [Example(text, "travel", "flight") for text in ("80", "95", "100")]
TRAIN += [Example(text, "banking", "balance") for text in ("0", "10", "-10")]
ASKED = [Example("5", "banking", "balance"), Example("85", "travel", "flight"), Example("-40", "travel", "flight")]
NAMES = {"banking": "0", "travel": "-40"}  # what the names are like


@pytest.fixture
def circle(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(texts: Sequence[str]) -> np.ndarray:
        angles = np.deg2rad([float(NAMES.get(text, text)) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    monkeypatch.setattr(few, "encoder_of", lambda model, runtime: encode)


def test_a_frozen_encoder_is_judged_by_questions_that_it_did_not_learn(circle: None) -> None:
    accuracy = few.frozen(TRAIN, ASKED, "any", names=False)
    assert accuracy([0, 1, 3, 4], 0) == pytest.approx(2 / 3)  # the last lies where banking is


def test_names_are_learnt_beside_the_examples(circle: None) -> None:
    assert few.frozen(TRAIN, ASKED, "any", names=True)([0, 1, 3, 4], 0) == 1


def test_an_encoder_that_learns_is_told_no_intents(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[Any] = []

    def learn(examples: Sequence[Example], categories: Sequence[str], model: str, *, seed: int) -> str:
        learnt.append((examples, categories, model, seed))
        return "made"

    def logits_of(made: str, texts: Sequence[str]) -> np.ndarray:
        assert (made, texts) == ("made", ["5", "85", "-40"])
        return np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])  # banking, travel

    monkeypatch.setattr(few, "learn", learn)
    monkeypatch.setattr(few, "logits_of", logits_of)
    assert few.tuned(TRAIN, ASKED, "folder")([4, 0], 7) == pytest.approx(2 / 3)
    assert learnt == [([Example("10", "banking"), Example("80", "travel")], ["banking", "travel"], "folder", 7)]
