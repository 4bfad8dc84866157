"""Accuracy over domains, with hyperparameters chosen on the validation split."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vllm_lora_router.tools.bench.domains import fit_head, questions, score_head

pytest.importorskip("sklearn")

# A text is an angle in degrees; banking is around 0, travel around 90.
INTENTS = {"banking": ["balance", "transfer"], "travel": ["book_flight"]}
DATA = {
    "train": [["0", "balance"], ["10", "transfer"], ["-10", "balance"], ["90", "book_flight"], ["80", "book_flight"]],
    "val": [["5", "transfer"], ["85", "book_flight"]],
    "test": [["3", "balance"], ["88", "book_flight"], ["7", "transfer"], ["2", "book_flight"]],
    "oos_test": [["45", "oos"]],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "domains.json").write_text(json.dumps(INTENTS))
    (tmp_path / "data_full.json").write_text(json.dumps(DATA))
    return tmp_path


def encode(texts: Sequence[str]) -> np.ndarray:
    angles = np.deg2rad([float(text) for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_question_has_the_domain_of_its_intent(data: Path) -> None:
    assert questions(data, "val") == (["5", "85"], ["banking", "travel"])


def test_head_is_scored_on_the_test_split(data: Path) -> None:
    head = fit_head(encode, data)
    assert head.validation == 1.0
    assert score_head(head, encode, data) == 0.75  # the last of the four has the wrong label


def test_head_can_be_scored_with_another_encoder(data: Path) -> None:
    assert score_head(fit_head(encode, data), lambda texts: -encode(texts), data) < 0.75
