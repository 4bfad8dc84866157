"""Models that are shared between one configuration and the next."""

import threading
from pathlib import Path

import psutil
import pytest

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import worker
from vllm_lora_router.classifiers.models.registry import Models


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


class Gpu:
    """What torch says of a GPU of 24 GB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.own, self.asked = 24 * 10**9, 0, []
        monkeypatch.setattr("torch.cuda.mem_get_info", self._memory)
        monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: self.own)

    def _memory(self, device: str) -> tuple[int, int]:
        self.asked.append(device)
        return self.free, 24 * 10**9


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.fixture
def big(folder: Path) -> Path:
    """A model of 2 GB, in a file with a hole, with 12.6 MB for a batch and graphs: 64 x (512 + 256) x 8 x 32 bytes."""
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(2 * 10**9)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    return folder


def never() -> object:
    raise AssertionError("it was loaded")


def test_a_model_that_a_gpu_has_no_room_for_is_refused_with_the_share_to_start_with(big: Path, gpu: Gpu) -> None:
    gpu.free = 1_500_000_000
    with pytest.raises(ClassifierError) as refused:
        Models().get("domain", str(big), "torch", "cuda:0", never)
    assert str(refused.value) == (
        f"the model in {big} needs 2.0 GB of cuda:0's 24.0 GB for its weights and a batch, and 1.5 GB are free; "
        "start with --gpu-memory-utilization 0.84 or lower, and at least 0.03 lower than now, or set device: cpu"
    )
    gpu.own = 10**9  # of a model that this process has loaded before
    with pytest.raises(ClassifierError, match=r"--gpu-memory-utilization 0\.80 or lower"):
        Models().get("domain", str(big), "torch", "cuda:0", never)
    gpu.own = 23 * 10**9
    with pytest.raises(ClassifierError, match=r"are free; set device: cpu$"):
        Models().get("domain", str(big), "torch", "cuda:0", never)


def test_a_model_that_a_gpu_has_room_for_is_loaded(big: Path, gpu: Gpu) -> None:
    gpu.free = 2_100_000_000
    assert Models().get("domain", str(big), "torch", "cuda", object).parts
    assert gpu.asked == ["cuda"]


def test_a_batch_needs_room_too(big: Path, gpu: Gpu) -> None:
    gpu.free = 2_001_000_000  # more than the weights alone
    with pytest.raises(ClassifierError, match="for its weights and a batch"):
        Models().get("domain", str(big), "torch", "cuda", never)


def test_a_new_model_that_the_gpu_has_no_room_for_is_refused_beside_those_in_force(
    big: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100 * 10**9}))
    gpu.free = 1_500_000_000
    with pytest.raises(
        ClassifierError, match=r"does not fit beside those in force: cuda has 1\.5 GB left; restart the server"
    ):
        Models(Models()).get("domain", str(big), "torch", "cuda", never)


def test_host_memory_does_not_keep_a_first_model_from_loading(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    assert Models().get("domain", str(big), "torch", "cpu", object).parts


def test_a_gpu_is_asked_of_nothing_that_does_not_go_there(big: Path, gpu: Gpu) -> None:
    gpu.free = 0
    Models().get("domain", str(big), "torch", "cpu", object)
    Models().get("domain", "nobody/no-such-model", "torch", "cuda", object)
    (big / "config.json").write_text('{"model_type": "model2vec"}')
    Models().get("embedding", str(big), "torch", "cuda", object)
    assert gpu.asked == []


def test_a_device_that_torch_does_not_know_is_left_to_who_loads(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(device: str) -> tuple[int, int]:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr("torch.cuda.mem_get_info", unknown)
    assert Models().get("domain", str(big), "torch", "cuda", object).parts
