"""Models that are shared between one configuration and the next."""

import threading
from pathlib import Path

import psutil
import pytest

from vllm_lora_router.classifiers import ClassifierError, worker
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


def test_a_model_whose_thread_does_not_return_is_not_shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STUCK_S", 0.01)
    before = Models()
    first = before.get("domain", str(folder), 512, "cpu", object)
    go, begun = threading.Event(), threading.Event()
    first.worker.submit(lambda: begun.set() or go.wait(10))
    assert begun.wait(5) and not go.wait(0.05)
    assert Models(before).get("domain", str(folder), 512, "cpu", object) is not first
    go.set()


def test_the_fingerprint_tells_the_files_apart(folder: Path) -> None:
    first = Models().get("domain", str(folder), 512, "cpu", object)
    assert Models().get("domain", str(folder), 512, "cpu", object).fingerprint == first.fingerprint
    (folder / "model.safetensors").write_bytes(b"y" * 100)
    assert Models().get("domain", str(folder), 512, "cpu", object).fingerprint != first.fingerprint
