"""`python -m vllm_lora_router.serve` reports every problem before an engine is started."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.server import ENVIRONMENT

from .conftest import HANG_GUARD_S, ROOT

# Runs `serve` in a child process for each line. vLLM is imported once, because the import takes most of the time.
PROGRAM = """
import json, os, sys, traceback
from vllm_lora_router import serve
from vllm_lora_router.server.vllm import plugin
from vllm_lora_router.server.vllm.command import VllmCommand

VllmCommand()  # imports vLLM
for line in sys.stdin:
    run = json.loads(line)
    pid = os.fork()
    if not pid:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(run[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.environ.update(run["environment"])
        code = 0
        try:
            serve.main(run["arguments"])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Serve:
    """Runs `serve` on the demo's base model with arguments that it refuses."""

    def __init__(self, models: DemoModels, folder: Path) -> None:
        self._base, self._folder = str(models.base), folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **ENVIRONMENT},
            cwd=models.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        files = {name: self._folder / name for name in ("stdout", "stderr")}
        run = {
            "arguments": [self._base, *arguments],
            "environment": dict(environment or {}),
            **{name: str(file) for name, file in files.items()},
        }
        self._process.stdin.write(json.dumps(run) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return subprocess.CompletedProcess([*arguments], code, files["stdout"].read_text(), files["stderr"].read_text())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def serve(models: DemoModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    serve = Serve(models, tmp_path_factory.mktemp("serve"))
    yield serve
    serve.close()


def run_module(
    models: DemoModels, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the module in a new interpreter."""
    return subprocess.run(
        [sys.executable, "-m", "vllm_lora_router.serve", str(models.base), *arguments],
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
        cwd=models.directory,
        capture_output=True,
        text=True,
        timeout=HANG_GUARD_S * 2,
    )


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """Assert that the server was refused and return the reasons."""
    assert result.returncode == 1, result.stderr
    assert "The server was not started:" in result.stderr
    assert "EngineCore" not in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr


def test_adapters_that_cannot_be_served_are_reported_with_the_reason(
    serve: Serve, models: DemoModels, tmp_path: Path
) -> None:
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
    }
    text = refusal(
        serve(
            *("--router-config", str(ROOT / "config/guide.yaml")),
            *("--lora-modules", *(f"{name}={folder}" for name, folder in modules.items())),
        )
    )
    for name, reason in {
        "technical-lora": "damaged",
        "medical-lora": "1024",
        "legal-lora": "does not exist",
        "another-lora": "trained on another base",
    }.items():
        assert any(name in line and reason in line for line in _joined(text)), (name, reason, text)


def test_an_adapter_with_a_name_that_vllm_uses_for_content_is_refused(serve: Serve, models: DemoModels) -> None:
    module = f"text={models.adapters['technical-lora']}"
    text = refusal(serve("--router-config", str(ROOT / "config/guide.yaml"), "--lora-modules", module))
    assert any("--lora-modules" in line and "all chat requests" in line for line in _joined(text)), text


def test_a_rank_above_max_lora_rank_is_reported(serve: Serve, models: DemoModels) -> None:
    modules = [f"{name}={folder}" for name, folder in models.adapters.items()]
    text = refusal(
        serve(
            *("--router-config", str(ROOT / "config/guide.yaml")),
            *("--max-lora-rank", "1", "--lora-modules", *modules),
        )
    )
    assert "--max-lora-rank is 1" in text


def test_errors_of_the_configuration_are_reported_with_their_place(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    guide = (ROOT / "config/guide.yaml").read_text()
    file.write_text(guide.replace('lora_name: "medical-lora"', 'lora_name: "medcal-lora"').replace("0.6", "1.6"))
    text = refusal(serve("--router-config", str(file)))
    assert f"{file}:6:16: classifier.category_model.threshold" in text
    assert "did you mean 'medical-lora'?" in text


@pytest.mark.parametrize(("content", "problem"), [(None, "no such file"), ("", "is empty"), ("a: [", "is not YAML")])
def test_a_file_that_is_no_configuration_is_refused(
    serve: Serve, tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    text = refusal(serve("--router-config", str(file)))
    assert str(file) in text and problem in text


def test_a_missing_configuration_named_by_the_environment_is_refused(serve: Serve, tmp_path: Path) -> None:
    result = serve("--port", "1", environment={"VLLM_LORA_ROUTER_CONFIG": str(tmp_path / "unset.yaml")})
    assert "unset.yaml" in refusal(result)


def test_a_missing_classifier_folder_is_reported(serve: Serve, models: DemoModels, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    guide = (ROOT / "config/guide.yaml").read_text()
    file.write_text(guide.replace("models/category_classifier_modernbert-base_model", "models/not_there"))
    modules = [f"{name}={folder}" for name, folder in models.adapters.items()]
    text = refusal(serve("--router-config", str(file), "--lora-modules", *modules))
    assert "classifier.category_model.model_id" in text and "'models/not_there'" in text


def test_a_plugin_that_cannot_be_imported_stops_the_start(models: DemoModels, tmp_path: Path) -> None:
    """vLLM itself logs the error and serves without routing."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'vllm_lora_router.server.middleware':\n"
        "            raise ImportError('broken on purpose')\n"
        "sys.meta_path.insert(0, Broken())\n"
    )
    result = run_module(
        models, "--router-config", str(ROOT / "config/guide.yaml"), environment={"PYTHONPATH": str(tmp_path)}
    )
    assert "broken on purpose" in refusal(result)


def test_front_ends_without_plugins_are_refused(serve: Serve) -> None:
    text = refusal(serve("--router-config", str(ROOT / "config/guide.yaml"), "--grpc"))
    assert "--grpc" in text


def test_help_shows_the_routers_option_and_then_those_of_vllm(serve: Serve) -> None:
    result = serve("--help")
    assert result.returncode == 0
    assert 0 < result.stdout.index("--router-config") < result.stdout.index("vllm serve [model_tag]")


def _halve(weights: Path) -> None:
    """Make an adapter one of a base model half as wide. vLLM loads it without an error, and its answers are wrong."""
    tensors = {
        name: tensor[:, : tensor.shape[1] // 2] if ".lora_A." in name else tensor[: tensor.shape[0] // 2]
        for name, tensor in load_file(weights).items()
    }
    save_file({name: tensor.copy() for name, tensor in tensors.items()}, weights)


def _joined(text: str) -> list[str]:
    """Return each problem as one line."""
    return text.replace("\n  - ", " - ").replace("\n    ", " ").splitlines()
