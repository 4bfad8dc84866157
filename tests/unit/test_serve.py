"""`python -m vllm_lora_router.serve` without vLLM."""

from argparse import Namespace
from pathlib import Path

import pytest

from vllm_lora_router import serve
from vllm_lora_router.classifiers.models import gpu_memory
from vllm_lora_router.server.vllm import plugin_selection
from vllm_lora_router.server.vllm.lora_flags import AvailableMemory

GB = 10**9

CONFIGURATION = """
model_config: {base: {}}
default_model: base
categories: [{name: general, model_scores: [{model: base}]}]
"""


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(serve.CONFIG_VARIABLE, raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


def test_missing_configuration_is_reported_with_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        serve.main(["model"])
    assert raised.value.code == 1
    assert "--router-config" in capsys.readouterr().err


def test_configuration_option_precedes_variable_and_default_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").touch()
    assert serve._config_file(None) == tmp_path / "config/config.yaml"
    monkeypatch.setenv(serve.CONFIG_VARIABLE, "other.yaml")
    assert serve._config_file(None) == tmp_path / "other.yaml"
    assert serve._config_file("mine.yaml") == tmp_path / "mine.yaml"


def test_missing_plugin_prevents_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(plugin_selection, "entry_points", lambda **_: [])
    with pytest.raises(SystemExit):
        serve.main(["model", "--router-config", "c.yaml"])
    assert "pip install" in capsys.readouterr().err


class FakeCommand:
    """A `VllmCommand` that records the arguments that it is run with."""

    default_gpu_utilization = 0.92
    user_gpu_utilization = None

    def __init__(self) -> None:
        self.run_with: list[Namespace] = []

    def parse(self, argv: list[str]) -> tuple[Namespace, dict[str, None]]:
        names = ("lora_modules", "served_model_name", "revision", "download_dir", "chat_template")
        args = Namespace(**dict.fromkeys(names), model="base", port=8000, kv_cache_memory_bytes=None)
        args.gpu_memory_utilization = self.default_gpu_utilization
        return args, {}

    def plugin_conflict(self, args: Namespace) -> None: ...

    def set_shutdown_timeout(self, args: Namespace, drain_s: float) -> str:
        return f"--shutdown-timeout {drain_s}"

    def available_memory(self, args: Namespace, base: object) -> AvailableMemory:
        return AvailableMemory()

    def gpu_bytes(self) -> int:
        return 24 * GB

    def api_servers(self, args: Namespace) -> int:
        return 1

    def is_on_one_node(self, args: Namespace) -> bool:
        return True

    def run(self, args: Namespace) -> None:
        self.run_with.append(args)


def test_engine_starts_with_memory_that_classifiers_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = FakeCommand()
    (tmp_path / "config.yaml").write_text(CONFIGURATION)
    monkeypatch.setenv(serve.CONFIG_VARIABLE, str(tmp_path / "config.yaml"))
    monkeypatch.setattr(serve, "VllmCommand", lambda: command)
    monkeypatch.setattr(serve, "share_vllm_log_handlers", lambda: None)
    monkeypatch.setattr(serve, "install_sighup_handler", lambda folder: None)
    monkeypatch.setattr(gpu_memory, "needed_bytes", lambda loaded: 3 * GB)
    serve._serve(["base"])
    assert [args.gpu_memory_utilization for args in command.run_with] == [0.83]
