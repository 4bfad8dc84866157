"""What is looked at on disk before an engine is started."""

from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.runtime.factory import Limits
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.server.preflight import Preflight, declared, preflight

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


def look(
    folder: Path, command_line: dict[str, str], *, classifier: str = "", model: BaseModel | None = None
) -> Preflight:
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(classifier=classifier))
    loaded = load(file, adapters=command_line)
    return preflight(loaded, served_base(loaded), model or BaseModel("base"), ["base"], command_line)


def test_an_adapter_without_a_folder_gets_both_ways_out(tmp_path: Path) -> None:
    problem = next(problem for problem in look(tmp_path, {}).problems if "second-lora" in problem)
    assert "without a folder" in problem and "--lora-modules second-lora=" in problem and "path" in problem


def test_every_problem_is_found_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    found = look(
        tmp_path,
        {"text": str(tmp_path / "empty"), "MoM": str(tmp_path / "empty")},
        classifier=f"classifier: {{category_model: {{model_id: {tmp_path / 'empty'}}}}}",
    )
    said = "\n".join(found.problems)
    for name in ("'first-lora'", "'second-lora'", "'text'", "'MoM'", "category_model.model_id"):
        assert name in said
    assert "by itself" in said and "asks the router to choose" in said
    assert found.adapters == ()


def test_a_path_is_tried_beside_the_configuration_and_the_command_line_counts(tmp_path: Path) -> None:
    (tmp_path / "adapters/first").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(classifier=""))
    loaded = load(file)
    base = served_base(loaded)
    assert declared(loaded, base, {}) == {"first-lora": tmp_path / "adapters/first", "second-lora": None}
    given = {"first-lora": str(tmp_path / "elsewhere"), "third-lora": str(tmp_path / "elsewhere")}
    assert declared(loaded, base, given) == {
        "first-lora": tmp_path / "elsewhere",
        "second-lora": None,
        "third-lora": tmp_path / "elsewhere",
    }


def test_a_base_without_a_chat_template_is_a_warning(tmp_path: Path) -> None:
    def said(template: bool | None) -> bool:
        found = look(tmp_path, {}, model=BaseModel("base", chat_template=template))
        return any("--chat-template" in notice.text for notice in found.notices)

    assert said(False)
    assert not said(True) and not said(None)


SOURCES = """
model_config: {{base: }}
default_model: base
categories:
  - name: all
    model_scores: [{{model: base, lora_name: medcal-lora}}]
router:
  adapters: {{sources: [{sources}]}}
"""


def said_of(folder: Path, sources: str, limits: Limits | None = None, *, is_up: bool = False) -> Preflight:
    file = folder / "config.yaml"
    file.write_text(SOURCES.format(sources=sources))
    loaded = load(file)
    return preflight(loaded, served_base(loaded), BaseModel("base"), ["base"], {}, limits, is_up=is_up)


def test_an_adapter_that_no_source_has_yet_is_a_warning_with_the_nearest_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "adapters/medical-lora").mkdir(parents=True)
    (tmp_path / "adapters/medical-lora/adapter_config.json").write_text("{}")
    found = said_of(tmp_path, "adapters")
    assert found.problems == ()
    (notice,) = found.notices
    assert notice.text.startswith(
        "adapter 'medcal-lora' is declared nowhere and in none of router.adapters.sources yet"
    )
    assert "did you mean 'medical-lora'?" in notice.text
    assert said_of(tmp_path, 'adapters, "{tenant}/{name}"').notices == ()


def test_sources_need_a_server_with_lora_and_must_be_sources(tmp_path: Path) -> None:
    assert said_of(tmp_path, "adapters", None).problems == ()
    (problem,) = said_of(tmp_path, "adapters", None, is_up=True).problems
    assert "--enable-lora" in problem
    (problem,) = said_of(tmp_path, '"adapters/{nam}"').problems
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
        ("{runtime: onnx-int8, device: cuda}", "onnx-int8 runs on the CPU alone, not on cuda: set device: cpu"),
        ("{model_id: static}", "static: a static encoder needs model2vec; pip install"),
        ("{runtime: torch}", None),
    ],
)
def test_what_runs_an_encoder_is_looked_for_before_the_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, problem: str | None
) -> None:
    for module in ("onnx_runtime", "static_embeddings"):
        monkeypatch.setattr(f"vllm_lora_router.classifiers.models.{module}.find_spec", lambda name: None)
    (tmp_path / "static").mkdir()
    (tmp_path / "static/config.json").write_text('{"model_type": "model2vec"}')
    file = tmp_path / "config.yaml"
    file.write_text(RULES.format(encoder=encoder))
    loaded = load(file)
    found = preflight(loaded, served_base(loaded), BaseModel("base"), ["base"], {}, None).problems
    assert not found if problem is None else problem in found[0]
