"""`--gpu-memory-utilization` is lowered by the memory that the classifiers need."""

import logging
from argparse import Namespace
from typing import cast

import pytest

from vllm_lora_router.classifiers.models import gpu_memory
from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.server.vllm import gpu_utilization
from vllm_lora_router.server.vllm.command import VllmCommand

GB = 10**9


class FakeCommand:
    """The parts of `VllmCommand` that concern the GPU."""

    default_gpu_utilization = 0.92

    def __init__(
        self, *, gpu_bytes: int | None = 24 * GB, servers: int = 1, user_utilization: float | None = None
    ) -> None:
        self.user_gpu_utilization = user_utilization
        self.gpu_bytes = lambda: gpu_bytes
        self.api_servers = lambda args: servers
        utilization = user_utilization or self.default_gpu_utilization
        self.args = Namespace(gpu_memory_utilization=utilization, kv_cache_memory_bytes=None)


def utilization(command: FakeCommand, monkeypatch: pytest.MonkeyPatch, *, needed: int = 3 * GB) -> float:
    """Return --gpu-memory-utilization for classifiers that need this many bytes."""
    monkeypatch.setattr(gpu_memory, "needed_bytes", lambda loaded: needed)
    gpu_utilization.reserve_classifier_memory(cast(VllmCommand, command), command.args, cast(LoadedConfig, None))
    return command.args.gpu_memory_utilization


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(gpu_utilization.logger, "propagate", True)
    caplog.set_level(logging.INFO, logger=gpu_utilization.logger.name)
    return caplog


def test_utilization_is_lowered_by_classifier_memory_and_logged(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    assert utilization(FakeCommand(servers=2), monkeypatch) == 0.71
    assert log.messages == [
        "--gpu-memory-utilization 0.71 instead of 0.92: the classifiers need about 3.0 GB in each of 2 API-server "
        "processes (GPU memory: 24.0 GB)"
    ]
    assert utilization(FakeCommand(), monkeypatch) == 0.83
    assert log.messages[1:] == [
        "--gpu-memory-utilization 0.83 instead of 0.92: the classifiers need about 3.0 GB (GPU memory: 24.0 GB)"
    ]


def test_user_utilization_is_not_changed_and_is_warned_about_if_too_high(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    assert utilization(FakeCommand(user_utilization=0.8), monkeypatch) == 0.8
    assert log.messages == []
    assert utilization(FakeCommand(user_utilization=0.95), monkeypatch) == 0.95
    assert log.messages == [
        "--gpu-memory-utilization 0.95 may leave too little memory for the classifiers: they need about 3.0 GB (GPU "
        "memory: 24.0 GB); set it to 0.83 or lower, or remove it"
    ]
    assert log.records[0].levelno == logging.WARNING


def test_gpu_without_room_for_classifiers_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    assert utilization(FakeCommand(servers=8), monkeypatch) == 0.92
    assert log.messages == [
        "GPU memory: the classifiers need about 3.0 GB in each of 8 API-server processes, and the GPU has 24.0 GB for "
        "them and the engine; set device: cpu or a smaller --api-server-count"
    ]


def test_utilization_does_not_change_without_need(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    fixed_kv_cache = FakeCommand()
    fixed_kv_cache.args.kv_cache_memory_bytes = 10 * GB
    large_gpu, no_gpu, no_server = FakeCommand(gpu_bytes=200 * GB), FakeCommand(gpu_bytes=None), FakeCommand(servers=0)
    for command in (large_gpu, no_gpu, no_server, fixed_kv_cache):
        assert utilization(command, monkeypatch) == 0.92
    assert utilization(FakeCommand(), monkeypatch, needed=0) == 0.92
    assert log.messages == []
