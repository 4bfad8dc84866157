"""A head in its folder: read as it was written, and refused when it is not whole."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.classifiers.heads.few_shot import fit_few
from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled
from vllm_lora_router.classifiers.heads.storage import HeadError, Stored, is_of, read, write

from .conftest import Around


@pytest.fixture
def stored(three: Labelled, around: Around) -> Stored:
    head = fit_few(three, np.ones(len(three), bool)).head
    return Stored(head, "an-encoder", around(5, 2), {"a": 0.5, "b": 0.7, "c": 0.5}, {"examples": 32})


def test_it_is_read_as_it_was_written(stored: Stored, around: Around, tmp_path: Path) -> None:
    write(tmp_path / "head", stored)
    again = read(tmp_path / "head")
    asked = around(1, 5, seed=2)
    assert np.array_equal(again.head(asked), stored.head(asked))
    assert (again.thresholds, again.encoder, again.about) == (stored.thresholds, "an-encoder", {"examples": 32})
    unbounded = replace(stored, head=replace(stored.head, none=-np.inf))
    write(tmp_path / "head", unbounded)
    assert read(tmp_path / "head").head.none == -np.inf


def test_it_knows_the_encoder_that_it_was_fitted_on(stored: Stored, around: Around) -> None:
    assert is_of(stored, stored.probes)
    assert is_of(stored, stored.probes + np.float32(0.01))
    assert not is_of(stored, around(6, 2))
    assert not is_of(stored, stored.probes[:, :8])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda said: said.update(version=2), "is of version 2, and this package reads 1"),
        (lambda said: said.update(outputs=["a", "b", "c"]), "weights is [32, 4], and by head.json it must be [32, 3]"),
        (lambda said: said.update(kernel="cubic"), "kernel 'cubic' is not known"),
        (lambda said: said.update(thresholds={"a": 0.5}), "thresholds must name the categories"),
        (lambda said: said["thresholds"].update(a=1.5), "a threshold is not between 0 and 1"),
        (lambda said: said.update(scale="much"), "Expected `float`, got `str`"),
        (lambda said: said.update(more=1), "unknown field `more`"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    stored: Stored, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    write(tmp_path, stored)
    found = json.loads((tmp_path / "head.json").read_text())
    change(found)
    (tmp_path / "head.json").write_text(json.dumps(found))
    with pytest.raises(HeadError) as error:
        read(tmp_path)
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_file_that_is_missing_or_cut_off_is_named(stored: Stored, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"head\.json: no such file"):
        read(tmp_path)
    write(tmp_path, stored)
    numbers = tmp_path / "head.safetensors"
    numbers.write_bytes(numbers.read_bytes()[:100])
    with pytest.raises(HeadError, match="cannot be read as a head"):
        read(tmp_path)
    numbers.unlink()
    with pytest.raises(HeadError, match=r"head\.safetensors: no such file"):
        read(tmp_path)


def test_numbers_that_are_none_are_refused(stored: Stored, tmp_path: Path) -> None:
    weights = stored.head.weights.copy()
    weights[0, 0] = np.nan
    write(tmp_path, replace(stored, head=replace(stored.head, weights=weights)))
    with pytest.raises(HeadError, match="not finite"):
        read(tmp_path)
