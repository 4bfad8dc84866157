"""What `python -m vllm_lora_router.serve` does before vLLM is imported."""

import argparse
import logging
import sys
from argparse import Namespace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

from vllm_lora_router import serve
from vllm_lora_router.classifiers.models import gpu_memory
from vllm_lora_router.config import Loaded
from vllm_lora_router.server.vllm import engine
from vllm_lora_router.server.vllm.engine import VllmCommand
from vllm_lora_router.server.vllm.lora_flags import Room

GB = 10**9


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(serve.CONFIG_VARIABLE, raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


def test_without_any_configuration_the_way_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        serve.main(["model"])
    assert caught.value.code == 1
    assert "--router-config" in capsys.readouterr().err


def test_the_configuration_is_the_flags_then_the_variables_then_the_usual_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").touch()
    assert serve._config_file(None) == tmp_path / "config/config.yaml"
    monkeypatch.setenv(serve.CONFIG_VARIABLE, "other.yaml")
    assert serve._config_file(None) == tmp_path / "other.yaml"
    assert serve._config_file("mine.yaml") == tmp_path / "mine.yaml"


def test_plugins_that_would_have_loaded_without_us_still_load(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        entry_points = (
            EntryPoint("theirs", "a:b", "vllm.general_plugins"),
            EntryPoint("platform", "a:b", "vllm.platform_plugins"),
            EntryPoint("other-routes", "a:b", "vllm.endpoint_plugins"),  # loads only when it is named
            EntryPoint("lora_router", "a:b", "vllm.endpoint_plugins"),
            EntryPoint("unrelated", "a:b", "pytest11"),
        )

    monkeypatch.setattr(serve, "distributions", lambda: [Distribution()])
    assert serve._plugins() == ["theirs", "platform", "lora_router"]
    monkeypatch.setenv("VLLM_PLUGINS", "only,these")
    assert serve._plugins() == ["only", "these", "lora_router"]
    monkeypatch.setenv("VLLM_PLUGINS", "")
    assert serve._plugins() == ["lora_router"]


def test_a_plugin_that_is_not_installed_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "entry_points", lambda **_: [])
    with pytest.raises(SystemExit):
        serve.main(["model", "--router-config", "c.yaml"])
    assert "pip install" in capsys.readouterr().err


class Vllm:
    """What `serve` asks vLLM's command line about a GPU."""

    usual_share = 0.92

    def __init__(self, *, gpu_bytes: int | None = 24 * GB, servers: int = 1, given: float | None = None) -> None:
        self.given_share = given
        self.gpu_bytes = lambda: gpu_bytes
        self.api_servers = lambda args: servers
        self.args = Namespace(gpu_memory_utilization=given or self.usual_share, kv_cache_memory_bytes=None)


def share(vllm: Vllm, monkeypatch: pytest.MonkeyPatch, *, needed: int = 3 * GB) -> float:
    monkeypatch.setattr(gpu_memory, "needed_bytes", lambda loaded: needed)
    serve._leave_room(cast(VllmCommand, vllm), vllm.args, cast(Loaded, None))
    return vllm.args.gpu_memory_utilization


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(serve.logger, "propagate", True)
    caplog.set_level(logging.INFO, logger=serve.logger.name)
    return caplog


def test_the_classifiers_get_room_on_the_gpu_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    assert share(Vllm(servers=2), monkeypatch) == 0.71
    assert lines.messages == [
        "--gpu-memory-utilization 0.71 instead of 0.92: of the GPU's 24.0 GB the classifiers need about 3.0 GB in each "
        "of 2 API-server processes"
    ]
    assert share(Vllm(), monkeypatch) == 0.83
    assert lines.messages[1:] == [
        "--gpu-memory-utilization 0.83 instead of 0.92: of the GPU's 24.0 GB the classifiers need about 3.0 GB"
    ]


def test_a_share_that_the_user_has_set_stays_and_is_warned_of_where_it_leaves_too_little(
    monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    assert share(Vllm(given=0.8), monkeypatch) == 0.8
    assert lines.messages == []
    assert share(Vllm(given=0.95), monkeypatch) == 0.95
    assert lines.messages == [
        "--gpu-memory-utilization 0.95 may leave too little of the GPU's 24.0 GB: the classifiers need about 3.0 GB; "
        "set it to 0.83 or lower, or leave it out"
    ]
    assert lines.records[0].levelno == logging.WARNING


def test_a_gpu_without_room_for_the_classifiers_is_said(
    monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    assert share(Vllm(servers=8), monkeypatch) == 0.92
    assert lines.messages == [
        "the classifiers need about 3.0 GB in each of 8 API-server processes, and the GPU has 24.0 GB for them and the "
        "engine; set device: cpu or a smaller --api-server-count"
    ]


def test_the_share_stays_where_there_is_room_or_no_gpu_or_no_server_or_it_says_nothing(
    monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    sized = Vllm()
    sized.args.kv_cache_memory_bytes = 10 * GB
    for vllm in (Vllm(gpu_bytes=200 * GB), Vllm(gpu_bytes=None), Vllm(servers=0), sized):
        assert share(vllm, monkeypatch) == 0.92
    assert share(Vllm(), monkeypatch, needed=0) == 0.92
    assert lines.messages == []


CONFIGURATION = """
model_config: {base: {}}
default_model: base
categories: [{name: general, model_scores: [{model: base}]}]
"""


def test_an_engine_is_started_with_what_the_classifiers_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[float] = []

    class Started(Vllm):
        def parse(self, argv: list[str]) -> tuple[Namespace, dict[str, None]]:
            for name in ("lora_modules", "served_model_name", "revision", "download_dir", "chat_template"):
                setattr(self.args, name, None)
            self.args.model, self.args.port = "base", 8000
            return self.args, {}

        def without_plugins(self, args: Namespace) -> None: ...

        def room(self, args: Namespace, base: object) -> Room:
            return Room()

        def run(self, args: Namespace) -> None:
            started.append(args.gpu_memory_utilization)

    (tmp_path / "config.yaml").write_text(CONFIGURATION)
    monkeypatch.setenv(serve.CONFIG_VARIABLE, str(tmp_path / "config.yaml"))
    monkeypatch.setattr(engine, "VllmCommand", Started)
    monkeypatch.setattr("vllm_lora_router.server.vllm.plugin.log_like_vllm", lambda: None)
    monkeypatch.setattr(serve, "note_hangups", lambda folder: None)
    monkeypatch.setattr(gpu_memory, "needed_bytes", lambda loaded: 3 * GB)
    serve._serve(["base"])
    assert started == [0.83]


@pytest.fixture(params=[["--gpu-memory-utilization"], ["--gpu-memory-utilization", "--device-memory-utilization"]])
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> VllmCommand:
    """vLLM's command over a parser with a few of its flags, as different releases have them."""
    parser = argparse.ArgumentParser()
    flags = parser.add_subparsers(dest="subparser").add_parser("serve")
    for name in ("--max-loras", "--max-cpu-loras", "--max-lora-rank"):
        flags.add_argument(name, type=int, default=16)
    flags.add_argument("--enable-lora", action=argparse.BooleanOptionalAction)
    group = flags.add_argument_group("CacheConfig")
    group.add_argument(*request.param, dest="gpu_memory_utilization", type=float, default=0.9)
    monkeypatch.setattr(engine, "_prepare_environment", lambda: None)
    monkeypatch.setattr(engine, "_configure_logging", lambda args: None)
    monkeypatch.setattr(engine, "_parser", lambda: (parser, flags))
    return VllmCommand()


def test_the_command_line_tells_a_share_that_was_set_from_one_that_was_not(command: VllmCommand) -> None:
    args, given = command.parse([])
    assert (args.gpu_memory_utilization, command.given_share) == (0.9, None)
    assert set(given) == set(command.LORA_FLAGS)
    args, _ = command.parse(["--gpu-memory-utilization", "0.9"])
    assert (args.gpu_memory_utilization, command.given_share) == (0.9, 0.9)
    assert command.usual_share == 0.9


SERVER = {
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
def test_the_api_servers_are_counted_as_vllm_starts_them(
    command: VllmCommand, arguments: dict[str, object], servers: int
) -> None:
    assert command.api_servers(Namespace(**{**SERVER, **arguments})) == servers


class Platform:
    def __init__(self, *, is_gpu: bool, says: bool = True) -> None:
        self.is_cuda_alike = lambda: is_gpu
        self.says = says

    def get_device_total_memory(self) -> int:
        if not self.says:
            raise RuntimeError("no driver")
        return 24 * GB


@pytest.mark.parametrize(
    ("platform", "total"),
    [
        (Platform(is_gpu=True), 24 * GB),
        (Platform(is_gpu=True, says=False), None),
        (Platform(is_gpu=False), None),
    ],
)
def test_a_gpu_has_memory_and_a_cpu_has_none_of_a_gpu(
    command: VllmCommand, monkeypatch: pytest.MonkeyPatch, platform: Platform, total: int | None
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.platforms", cast(ModuleType, Namespace(current_platform=platform)))
    assert command.gpu_bytes() == total
