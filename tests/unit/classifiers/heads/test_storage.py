"""Storage of heads: a head is read as it was written, and damaged files are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.classifiers.heads.few_shot import fit_few_shot
from vllm_lora_router.classifiers.heads.kernel_ridge import LabelledEmbeddings
from vllm_lora_router.classifiers.heads.storage import HeadError, StoredHead, matches_encoder, read_head, write_head

from .conftest import Around


@pytest.fixture
def stored(three: LabelledEmbeddings, around: Around) -> StoredHead:
    head = fit_few_shot(three, np.ones(len(three), bool)).head
    return StoredHead(head, "an-encoder", around(5, 2), {"a": 0.5, "b": 0.7, "c": 0.5}, {"examples": 32})


def test_a_head_is_read_as_it_was_written(stored: StoredHead, around: Around, tmp_path: Path) -> None:
    write_head(tmp_path / "head", stored)
    loaded = read_head(tmp_path / "head")
    vectors = around(1, 5, seed=2)
    assert np.array_equal(loaded.head(vectors), stored.head(vectors))
    assert (loaded.thresholds, loaded.encoder, loaded.metadata) == (stored.thresholds, "an-encoder", {"examples": 32})
    unbounded = replace(stored, head=replace(stored.head, none_score=-np.inf))
    write_head(tmp_path / "head", unbounded)
    assert read_head(tmp_path / "head").head.none_score == -np.inf


def test_a_head_recognizes_the_encoder_that_it_was_fitted_on(stored: StoredHead, around: Around) -> None:
    assert matches_encoder(stored, stored.probes)
    assert matches_encoder(stored, stored.probes + np.float32(0.01))
    assert not matches_encoder(stored, around(6, 2))
    assert not matches_encoder(stored, stored.probes[:, :8])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda settings: settings.update(version=2), "has version 2, but this package reads 1"),
        (
            lambda settings: settings.update(outputs=["a", "b", "c"]),
            "[32, 4], but by head.json it must be [32, 3]",
        ),
        (lambda settings: settings.update(kernel="cubic"), "unknown kernel 'cubic'"),
        (lambda settings: settings.update(thresholds={"a": 0.5}), "thresholds must name the categories"),
        (lambda settings: settings["thresholds"].update(a=1.5), "a threshold is not between 0 and 1"),
        (lambda settings: settings.update(scale="much"), "Expected `float`, got `str`"),
        (lambda settings: settings.update(more=1), "unknown field `more`"),
    ],
)
def test_inconsistent_files_are_refused(
    stored: StoredHead, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    write_head(tmp_path, stored)
    settings = json.loads((tmp_path / "head.json").read_text())
    change(settings)
    (tmp_path / "head.json").write_text(json.dumps(settings))
    with pytest.raises(HeadError) as error:
        read_head(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_missing_or_truncated_file_is_reported(stored: StoredHead, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"head\.json: no such file"):
        read_head(tmp_path)
    write_head(tmp_path, stored)
    arrays = tmp_path / "head.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(HeadError, match="cannot be read as a head"):
        read_head(tmp_path)
    arrays.unlink()
    with pytest.raises(HeadError, match=r"head\.safetensors: no such file"):
        read_head(tmp_path)


def test_nan_values_are_refused(stored: StoredHead, tmp_path: Path) -> None:
    weights = stored.head.weights.copy()
    weights[0, 0] = np.nan
    write_head(tmp_path, replace(stored, head=replace(stored.head, weights=weights)))
    with pytest.raises(HeadError, match="not finite"):
        read_head(tmp_path)
