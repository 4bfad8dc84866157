"""vLLM's command line: user flags, API-server processes and GPU memory."""

import argparse
import sys
from argparse import Namespace
from types import ModuleType
from typing import cast

import pytest

from vllm_lora_router.server.vllm import command as command_module
from vllm_lora_router.server.vllm.command import VllmCommand

GB = 10**9


@pytest.fixture(params=[["--gpu-memory-utilization"], ["--gpu-memory-utilization", "--device-memory-utilization"]])
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> VllmCommand:
    """A `VllmCommand` over a parser with some of vLLM's flags, as different releases define them."""
    parser = argparse.ArgumentParser()
    flags = parser.add_subparsers(dest="subparser").add_parser("serve")
    for name in ("--max-loras", "--max-cpu-loras", "--max-lora-rank"):
        flags.add_argument(name, type=int, default=16)
    flags.add_argument("--enable-lora", action=argparse.BooleanOptionalAction)
    group = flags.add_argument_group("CacheConfig")
    group.add_argument(*request.param, dest="gpu_memory_utilization", type=float, default=0.9)
    monkeypatch.setattr(command_module, "_prepare_environment", lambda: None)
    monkeypatch.setattr(command_module, "_configure_logging", lambda args: None)
    monkeypatch.setattr(command_module, "_parser", lambda: (parser, flags))
    return VllmCommand()


def test_user_gpu_utilization_differs_from_default_with_same_value(command: VllmCommand) -> None:
    args, user_flags = command.parse([])
    assert (args.gpu_memory_utilization, command.user_gpu_utilization) == (0.9, None)
    assert set(user_flags) == set(command.LORA_FLAGS)
    args, _ = command.parse(["--gpu-memory-utilization", "0.9"])
    assert (args.gpu_memory_utilization, command.user_gpu_utilization) == (0.9, 0.9)
    assert command.default_gpu_utilization == 0.9


DEFAULT_ARGUMENTS = {
    "headless": False,
    "api_server_count": None,
    "data_parallel_size": 1,
    "data_parallel_size_local": None,
    "data_parallel_external_lb": False,
    "data_parallel_hybrid_lb": False,
    "data_parallel_rank": None,
    "data_parallel_start_rank": None,
}


@pytest.mark.parametrize(
    ("arguments", "servers"),
    [
        ({}, 1),
        ({"api_server_count": 3}, 3),
        ({"data_parallel_size": 4}, 4),
        ({"data_parallel_size": 4, "api_server_count": 2}, 2),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_hybrid_lb": True}, 2),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_start_rank": 2}, 2),
        ({"data_parallel_size": 4, "data_parallel_external_lb": True}, 1),
        ({"data_parallel_size": 4, "data_parallel_rank": 0}, 1),
        ({"data_parallel_size": 4, "data_parallel_size_local": 0}, 0),
        ({"data_parallel_size": 4, "enable_elastic_ep": True}, 1),
        ({"data_parallel_size": 4, "data_parallel_size_local": 4, "data_parallel_multi_port_external_lb": True}, 4),
        ({"headless": True, "data_parallel_size": 4}, 0),
    ],
)
def test_api_servers_are_counted_as_vllm_starts_them(
    command: VllmCommand, arguments: dict[str, object], servers: int
) -> None:
    assert command.api_servers(Namespace(**{**DEFAULT_ARGUMENTS, **arguments})) == servers


class Platform:
    """A fake of `vllm.platforms.current_platform`."""

    def __init__(self, *, is_gpu: bool, has_driver: bool = True) -> None:
        self.is_cuda_alike = lambda: is_gpu
        self.has_driver = has_driver

    def get_device_total_memory(self) -> int:
        if not self.has_driver:
            raise RuntimeError("no driver")
        return 24 * GB


@pytest.mark.parametrize(
    ("platform", "total"),
    [
        (Platform(is_gpu=True), 24 * GB),
        (Platform(is_gpu=True, has_driver=False), None),
        (Platform(is_gpu=False), None),
    ],
)
def test_gpu_bytes_are_none_without_gpu_or_driver(
    command: VllmCommand, monkeypatch: pytest.MonkeyPatch, platform: Platform, total: int | None
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.platforms", cast(ModuleType, Namespace(current_platform=platform)))
    assert command.gpu_bytes() == total
