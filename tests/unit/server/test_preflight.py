"""Checks of adapters and model files before the engine starts."""

from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.runtime.factory import EngineLimits
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.server.preflight import Preflight, declared_folders, preflight

CONFIG = """
{classifier}
model_config:
  base:
    loras:
      - {{name: first-lora, path: adapters/first}}
      - {{name: second-lora}}
default_model: base
categories:
  - name: all
    model_scores: [{{model: base, lora_name: first-lora}}]
"""


def check(
    folder: Path, command_line: dict[str, str], *, classifier: str = "", model: BaseModel | None = None
) -> Preflight:
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(classifier=classifier))
    loaded = load(file, adapters=command_line)
    return preflight(loaded, served_base(loaded), model or BaseModel("base"), ["base"], command_line)


def test_adapter_without_folder_is_reported_with_both_remedies(tmp_path: Path) -> None:
    problem = next(problem for problem in check(tmp_path, {}).problems if "second-lora" in problem)
    assert "without a folder" in problem and "--lora-modules second-lora=" in problem and "path" in problem


def test_all_problems_are_reported_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    checks = check(
        tmp_path,
        {"third-lora": str(tmp_path / "empty"), "base": str(tmp_path / "empty")},
        classifier=f"classifier: {{category_model: {{model_id: {tmp_path / 'empty'}}}}}",
    )
    problems = "\n".join(checks.problems)
    for name in ("'first-lora'", "'second-lora'", "'third-lora'", "'base'", "category_model.model_id"):
        assert name in problems
    assert "is the base model's served name" in problems
    assert checks.adapters == ()


def test_path_is_relative_to_configuration_and_command_line_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "adapters/first").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(classifier=""))
    loaded = load(file)
    base = served_base(loaded)
    assert declared_folders(loaded, base, {})[0] == {"first-lora": tmp_path / "adapters/first", "second-lora": None}
    command_line = {"first-lora": str(tmp_path / "elsewhere"), "third-lora": str(tmp_path / "elsewhere")}
    assert declared_folders(loaded, base, command_line)[0] == {
        "first-lora": tmp_path / "elsewhere",
        "second-lora": None,
        "third-lora": tmp_path / "elsewhere",
    }


def test_base_model_without_chat_template_is_a_warning(tmp_path: Path) -> None:
    def warns(chat_template: bool | None) -> bool:
        checks = check(tmp_path, {}, model=BaseModel("base", chat_template=chat_template))
        return any("--chat-template" in notice.text for notice in checks.notices)

    assert warns(False)
    assert not warns(True) and not warns(None)


SOURCES = """
model_config: {{base: }}
default_model: base
categories:
  - name: all
    model_scores: [{{model: base, lora_name: medcal-lora}}]
router:
  adapters: {{sources: [{sources}]}}
"""


def check_sources(
    folder: Path, sources: str, limits: EngineLimits | None = None, *, engine_is_up: bool = False
) -> Preflight:
    file = folder / "config.yaml"
    file.write_text(SOURCES.format(sources=sources))
    loaded = load(file)
    return preflight(loaded, served_base(loaded), BaseModel("base"), ["base"], {}, limits, engine_is_up=engine_is_up)


def test_adapter_missing_in_sources_is_a_warning_with_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "adapters/medical-lora").mkdir(parents=True)
    (tmp_path / "adapters/medical-lora/adapter_config.json").write_text("{}")
    checks = check_sources(tmp_path, "adapters")
    assert checks.problems == ()
    (notice,) = checks.notices
    assert notice.text == (
        "adapter 'medcal-lora' is not declared and not in router.adapters.sources: its requests fall back to the next "
        "candidate until it is added; did you mean 'medical-lora'?"
    )
    assert check_sources(tmp_path, 'adapters, "{tenant}/{name}"').notices == ()


def test_sources_need_lora_and_valid_templates(tmp_path: Path) -> None:
    assert check_sources(tmp_path, "adapters", None).problems == ()
    (problem,) = check_sources(tmp_path, "adapters", None, engine_is_up=True).problems
    assert "--enable-lora" in problem
    (problem,) = check_sources(tmp_path, '"adapters/{nam}"').problems
    assert f"{tmp_path / 'config.yaml'}:8:" in problem and "{nam}" in problem


RULES = """
model_config: {{base: }}
default_model: base
embedding_rules: [{{category: other, candidates: [anything]}}]
categories: [{{name: other, model_scores: [{{model: base}}]}}]
classifier: {{embedding_model: {encoder}}}
"""


@pytest.mark.parametrize(
    ("encoder", "problem"),
    [
        ("{runtime: onnx}", "classifier.embedding_model.runtime: onnx needs onnxruntime"),
        ("{runtime: onnx-int8, device: cuda}", "onnx-int8 runs only on the CPU, not on cuda; set device: cpu"),
        ("{model_id: static}", "static: a static encoder needs model2vec; pip install"),
        ("{runtime: torch}", None),
    ],
)
def test_encoder_runtime_is_checked_before_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, problem: str | None
) -> None:
    for module in ("onnx_runtime", "static_embeddings"):
        monkeypatch.setattr(f"vllm_lora_router.classifiers.models.{module}.find_spec", lambda name: None)
    (tmp_path / "static").mkdir()
    (tmp_path / "static/config.json").write_text('{"model_type": "model2vec"}')
    file = tmp_path / "config.yaml"
    file.write_text(RULES.format(encoder=encoder))
    loaded = load(file)
    problems = preflight(loaded, served_base(loaded), BaseModel("base"), ["base"], {}, None).problems
    assert not problems if problem is None else problem in problems[0]


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Replace the model hub by an empty folder, and return the list of ids and revisions that were downloaded."""
    calls: list[tuple[str, str | None]] = []

    def snapshot_download(repo_id: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        assert allow_patterns == ["adapter_config.json", "adapter_model.safetensors"]
        calls.append((repo_id, revision))
        if repo_id == "acme/absent":
            raise OSError("404 Client Error\nmore")
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def test_missing_folder_in_configuration_is_not_downloaded_from_the_hub(
    tmp_path: Path, downloads: list[tuple[str, str | None]]
) -> None:
    problems = "\n".join(check(tmp_path, {}).problems)
    assert "adapter 'first-lora' (adapters/first): the folder does not exist" in problems
    assert downloads == []


@pytest.mark.parametrize(
    ("path", "download"),
    [("hf:acme/medical", ("acme/medical", None)), ("hf:acme/medical@v2", ("acme/medical", "v2"))],
)
def test_hub_adapter_in_configuration_is_downloaded(
    tmp_path: Path, downloads: list[tuple[str, str | None]], path: str, download: tuple[str, str | None]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(classifier="").replace("path: adapters/first", f"path: '{path}'"))
    loaded = load(file)
    folders, problems = declared_folders(loaded, served_base(loaded), {})
    assert folders["first-lora"] == tmp_path / "hub"
    assert problems == []
    assert downloads == [download]


def test_failed_download_is_reported_with_its_reason(tmp_path: Path, downloads: list[tuple[str, str | None]]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(classifier="").replace("path: adapters/first", "path: 'hf:acme/absent'"))
    loaded = load(file)
    checks = preflight(loaded, served_base(loaded), BaseModel("base"), ["base"], {})
    assert checks.problems[0] == ("adapter 'first-lora': path 'hf:acme/absent' cannot be downloaded (404 Client Error)")
    assert not any("first-lora" in problem for problem in checks.problems[1:])


def test_hub_id_on_the_command_line_is_downloaded_as_in_vllm_with_a_notice(
    tmp_path: Path, downloads: list[tuple[str, str | None]]
) -> None:
    checks = check(tmp_path, {"first-lora": "adapters/medical", "third-lora": "/adapters/medical"})
    assert downloads == [("adapters/medical", None)]
    assert checks.folders["first-lora"] == tmp_path / "hub"
    (notice,) = (notice for notice in checks.notices if "--lora-modules" in notice.text)
    assert notice.text.startswith("--lora-modules first-lora=adapters/medical: there is no such folder, so vLLM takes")
