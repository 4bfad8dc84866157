"""The model registry shares models between configurations and checks the memory for new ones."""

import threading
from pathlib import Path

import psutil
import pytest

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import worker
from vllm_lora_router.classifiers.models.registry import ModelRegistry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    return tmp_path


def test_an_unchanged_model_is_shared_with_its_worker(folder: Path) -> None:
    before = ModelRegistry()
    first = before.get("domain", str(folder), 512, "cpu", object)
    after = ModelRegistry(before)
    assert after.get("domain", str(folder), 512, "cpu", object) is first
    assert ModelRegistry(after).get("domain", str(folder), 512, "cpu", object) is first


def test_models_with_different_settings_or_methods_are_not_shared(folder: Path) -> None:
    before = ModelRegistry()
    first = before.get("domain", str(folder), 512, "cpu", object)
    assert ModelRegistry(before).get("domain", str(folder), 256, "cpu", object) is not first
    assert ModelRegistry(before).get("embedding", str(folder), 512, "cpu", object) is not first


def test_a_changed_folder_is_loaded_again(folder: Path) -> None:
    before = ModelRegistry()
    first = before.get("domain", str(folder), 512, "cpu", object)
    (folder / "model.safetensors").write_bytes(b"y" * 101)
    assert ModelRegistry(before).get("domain", str(folder), 512, "cpu", object) is not first


def test_a_model_that_does_not_fit_into_host_memory_next_to_the_models_in_effect_is_refused(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(psutil.virtual_memory().total)  # a sparse file takes no disk space

    def load() -> object:
        raise AssertionError("it was loaded")

    with pytest.raises(ClassifierError, match=r"next to the models in effect: host memory has .* free; restart"):
        ModelRegistry(ModelRegistry()).get("domain", str(folder), 512, "cpu", load)


def test_a_model_with_a_stuck_worker_is_not_shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STUCK_S", 0.01)
    before = ModelRegistry()
    first = before.get("domain", str(folder), 512, "cpu", object)
    finish, started = threading.Event(), threading.Event()
    first.worker.submit(lambda: started.set() or finish.wait(10))
    assert started.wait(5) and not finish.wait(0.05)
    assert ModelRegistry(before).get("domain", str(folder), 512, "cpu", object) is not first
    finish.set()


def test_the_fingerprint_depends_on_the_files(folder: Path) -> None:
    first = ModelRegistry().get("domain", str(folder), 512, "cpu", object)
    assert ModelRegistry().get("domain", str(folder), 512, "cpu", object).fingerprint == first.fingerprint
    (folder / "model.safetensors").write_bytes(b"y" * 100)
    assert ModelRegistry().get("domain", str(folder), 512, "cpu", object).fingerprint != first.fingerprint


class Gpu:
    """A GPU with 24 GB, as torch reports it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.reserved, self.queried = 24 * 10**9, 0, []
        monkeypatch.setattr("torch.cuda.mem_get_info", self._memory)
        monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: self.reserved)

    def _memory(self, device: str) -> tuple[int, int]:
        self.queried.append(device)
        return self.free, 24 * 10**9


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.fixture
def big(folder: Path) -> Path:
    """A model of 2 GB in a sparse file, with 12.6 MB for a batch and graphs: 64 x (512 + 256) x 8 x 32 bytes."""
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(2 * 10**9)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    return folder


def unexpected_load() -> object:
    raise AssertionError("it was loaded")


def test_a_model_that_does_not_fit_on_the_gpu_is_refused_with_the_utilization_to_set(big: Path, gpu: Gpu) -> None:
    gpu.free = 1_500_000_000
    with pytest.raises(ClassifierError) as error:
        ModelRegistry().get("domain", str(big), "torch", "cuda:0", unexpected_load)
    assert str(error.value) == (
        f"the model in {big} needs 2.0 GB of cuda:0's 24.0 GB for its weights and a batch, but 1.5 GB are free; "
        "start with --gpu-memory-utilization 0.84 or lower, and at least 0.03 lower than now, or set device: cpu"
    )
    gpu.reserved = 10**9  # of another model in this process
    with pytest.raises(ClassifierError, match=r"--gpu-memory-utilization 0\.80 or lower"):
        ModelRegistry().get("domain", str(big), "torch", "cuda:0", unexpected_load)
    gpu.reserved = 23 * 10**9
    with pytest.raises(ClassifierError, match=r"are free; set device: cpu$"):
        ModelRegistry().get("domain", str(big), "torch", "cuda:0", unexpected_load)


def test_a_model_that_fits_on_the_gpu_is_loaded(big: Path, gpu: Gpu) -> None:
    gpu.free = 2_100_000_000
    assert ModelRegistry().get("domain", str(big), "torch", "cuda", object).model
    assert gpu.queried == ["cuda"]


def test_the_memory_of_a_batch_is_included(big: Path, gpu: Gpu) -> None:
    gpu.free = 2_001_000_000  # more than the weights alone
    with pytest.raises(ClassifierError, match="for its weights and a batch"):
        ModelRegistry().get("domain", str(big), "torch", "cuda", unexpected_load)


def test_a_model_that_does_not_fit_on_the_gpu_next_to_the_models_in_effect_is_refused(
    big: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100 * 10**9}))
    gpu.free = 1_500_000_000
    with pytest.raises(
        ClassifierError, match=r"does not fit next to the models in effect: cuda has 1\.5 GB free; restart the server"
    ):
        ModelRegistry(ModelRegistry()).get("domain", str(big), "torch", "cuda", unexpected_load)


def test_host_memory_is_not_checked_for_the_first_configuration(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    assert ModelRegistry().get("domain", str(big), "torch", "cpu", object).model


def test_gpu_memory_is_not_queried_for_models_that_do_not_run_there(big: Path, gpu: Gpu) -> None:
    gpu.free = 0
    ModelRegistry().get("domain", str(big), "torch", "cpu", object)
    ModelRegistry().get("domain", "unknown/no-such-model", "torch", "cuda", object)
    (big / "config.json").write_text('{"model_type": "model2vec"}')
    ModelRegistry().get("embedding", str(big), "torch", "cuda", object)
    assert gpu.queried == []


def test_an_unknown_device_is_reported_by_the_load_function(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_unknown(device: str) -> tuple[int, int]:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr("torch.cuda.mem_get_info", raise_unknown)
    assert ModelRegistry().get("domain", str(big), "torch", "cuda", object).model
