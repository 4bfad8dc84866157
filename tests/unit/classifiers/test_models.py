"""Models that are shared between one configuration and the next."""

from pathlib import Path

import psutil
import pytest

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import Models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    return tmp_path


def test_a_model_that_did_not_change_is_shared_with_its_worker(folder: Path) -> None:
    before = Models()
    first = before.get("domain", str(folder), 512, "cpu", object)
    after = Models(before)
    assert after.get("domain", str(folder), 512, "cpu", object) is first
    assert Models(after).get("domain", str(folder), 512, "cpu", object) is first


def test_another_setting_or_another_method_is_another_model(folder: Path) -> None:
    before = Models()
    first = before.get("domain", str(folder), 512, "cpu", object)
    assert Models(before).get("domain", str(folder), 256, "cpu", object) is not first
    assert Models(before).get("embedding", str(folder), 512, "cpu", object) is not first


def test_another_model_in_the_same_folder_is_loaded(folder: Path) -> None:
    before = Models()
    first = before.get("domain", str(folder), 512, "cpu", object)
    (folder / "model.safetensors").write_bytes(b"y" * 101)
    assert Models(before).get("domain", str(folder), 512, "cpu", object) is not first


def test_a_model_that_does_not_fit_beside_those_in_force_is_refused_before_it_is_loaded(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(psutil.virtual_memory().total)  # a file with a hole takes no room on disk

    def load() -> object:
        raise AssertionError("it was loaded")

    with pytest.raises(ClassifierError, match=r"does not fit beside those in force: host memory has .* left; restart"):
        Models(Models()).get("domain", str(folder), 512, "cpu", load)
