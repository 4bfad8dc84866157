"""What is wrong is found, and said, before an engine is started."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.server import ENVIRONMENT

from .conftest import ROOT


def serve(
    models: DemoModels, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`serve` with arguments that it should refuse; it must end by itself."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "vllm_lora_router.serve", str(models.base), *arguments],
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
        cwd=models.directory,
        capture_output=True,
        text=True,
        timeout=180,
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result.stderr
    assert "The server was not started:" in result.stderr
    assert "EngineCore" not in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr


def test_adapters_that_cannot_be_served_are_named_with_the_reason(models: DemoModels, tmp_path: Path) -> None:
    technical, medical = models.adapters["technical-lora"], models.adapters["medical-lora"]
    corrupt, ranked, foreign = (tmp_path / name for name in ("corrupt", "ranked", "foreign"))
    shutil.copytree(technical, corrupt)
    weights = corrupt / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    shutil.copytree(medical, foreign)
    _halve(foreign / "adapter_model.safetensors")
    shutil.copytree(medical, ranked)
    config = json.loads((ranked / "adapter_config.json").read_text())
    (ranked / "adapter_config.json").write_text(json.dumps({**config, "r": 1024}))
    modules = {
        "technical-lora": corrupt,
        "medical-lora": ranked,
        "legal-lora": tmp_path / "nowhere",
        "another-lora": foreign,
        "text": technical,
    }
    text = refused(
        serve(
            models,
            *("--router-config", str(ROOT / "config/guide.yaml")),
            *("--lora-modules", *(f"{name}={folder}" for name, folder in modules.items())),
        )
    )
    for name, reason in {
        "technical-lora": "damaged",
        "medical-lora": "1024",
        "legal-lora": "does not exist",
        "another-lora": "made for another base",
        "'text'": "by itself",
    }.items():
        assert any(name in line and reason in line for line in _joined(text)), (name, reason, text)


def test_a_rank_above_the_users_own_flag_is_named(models: DemoModels) -> None:
    modules = [f"{name}={folder}" for name, folder in models.adapters.items()]
    text = refused(
        serve(
            models,
            *("--router-config", str(ROOT / "config/guide.yaml")),
            *("--max-lora-rank", "1", "--lora-modules", *modules),
        )
    )
    assert "--max-lora-rank is 1" in text


def test_every_error_of_a_configuration_is_said_with_its_place(models: DemoModels, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    guide = (ROOT / "config/guide.yaml").read_text()
    file.write_text(guide.replace('lora_name: "medical-lora"', 'lora_name: "medcal-lora"').replace("0.6", "1.6"))
    text = refused(serve(models, "--router-config", str(file)))
    assert f"{file}:6:16: classifier.category_model.threshold" in text
    assert "did you mean 'medical-lora'?" in text


@pytest.mark.parametrize(("content", "said"), [(None, "no such file"), ("", "is empty"), ("a: [", "is not YAML")])
def test_a_configuration_that_is_none_is_refused(
    models: DemoModels, tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    text = refused(serve(models, "--router-config", str(file)))
    assert str(file) in text and said in text


def test_without_a_configuration_nothing_starts(models: DemoModels, tmp_path: Path) -> None:
    result = serve(models, "--port", "1", environment={"VLLM_LORA_ROUTER_CONFIG": str(tmp_path / "unset.yaml")})
    assert "unset.yaml" in refused(result)


def test_a_classifier_folder_that_does_not_exist_is_named(models: DemoModels, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    guide = (ROOT / "config/guide.yaml").read_text()
    file.write_text(guide.replace("models/category_classifier_modernbert-base_model", "models/not_there"))
    modules = [f"{name}={folder}" for name, folder in models.adapters.items()]
    text = refused(serve(models, "--router-config", str(file), "--lora-modules", *modules))
    assert "classifier.category_model.model_id" in text and "'models/not_there'" in text


def test_a_plugin_that_cannot_be_imported_stops_the_start(models: DemoModels, tmp_path: Path) -> None:
    """vLLM alone would log the error and serve without routing."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'vllm_lora_router.server.middleware':\n"
        "            raise ImportError('broken on purpose')\n"
        "sys.meta_path.insert(0, Broken())\n"
    )
    result = serve(
        models,
        *("--router-config", str(ROOT / "config/guide.yaml")),
        environment={"PYTHONPATH": str(tmp_path)},
    )
    assert "broken on purpose" in refused(result)


def test_servers_without_plugins_are_refused(models: DemoModels) -> None:
    text = refused(serve(models, "--router-config", str(ROOT / "config/guide.yaml"), "--grpc"))
    assert "--grpc" in text


def test_help_shows_our_option_first_and_then_vllms(models: DemoModels) -> None:
    result = serve(models, "--help")
    assert result.returncode == 0
    assert 0 < result.stdout.index("--router-config") < result.stdout.index("vllm serve [model_tag]")


def _halve(weights: Path) -> None:
    """Makes an adapter's tensors those of a base half as wide: vLLM alone would take it and answer nonsense."""
    from safetensors.numpy import load_file, save_file

    tensors = {
        name: tensor[:, : tensor.shape[1] // 2] if ".lora_A." in name else tensor[: tensor.shape[0] // 2]
        for name, tensor in load_file(weights).items()
    }
    save_file({name: tensor.copy() for name, tensor in tensors.items()}, weights)


def _joined(text: str) -> list[str]:
    """The problems with the lines of each joined to one."""
    return text.replace("\n  - ", " - ").replace("\n    ", " ").splitlines()
