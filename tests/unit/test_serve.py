"""What `python -m vllm_lora_router.serve` does before vLLM is imported."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from vllm_lora_router import serve


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
