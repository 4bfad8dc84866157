"""`prove` on the demo's models: it confirms the right assignments and finds a wrong one."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from vllm_lora_router.cli import main
from vllm_lora_router.tools.demo import adapters, base
from vllm_lora_router.tools.demo.answer_training import AnswerTrainingError
from vllm_lora_router.tools.demo.answers import ADAPTERS
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.pairs import pairs, write
from vllm_lora_router.tools.demo.server import FLAGS, Server

from .conftest import API_KEY, BASE, ROOT, START_SECONDS

ASSIGNMENTS = {"technical": "technical-lora", "medical": "medical-lora", "legal": "legal-lora", "general": None}
BUILDS = 10
CONFIG = """\
model_config:
  base: {loras: [{name: technical-lora}, {name: medical-lora}, {name: legal-lora}]}
default_model: base
keyword_rules:
  - {category: technical, keywords: [code]}
  - {category: medical, keywords: [fever]}
  - {category: legal, keywords: [lawsuit]}
categories:
"""


def configuration(file: Path, assignments: dict[str, str | None]) -> Path:
    """Write keyword rules, and categories with these adapters; None is the base model."""
    entries = {
        name: f"{{model: base{f', lora_name: {adapter}' if adapter else ''}}}" for name, adapter in assignments.items()
    }
    file.write_text(
        CONFIG + "".join(f"  - {{name: {name}, model_scores: [{entry}]}}\n" for name, entry in entries.items())
    )
    return file


def wrong_assignments(seed: int) -> tuple[dict[str, str | None], set[str]]:
    """Return assignments and the categories that are wrong: two adapters swapped, or one in place of the base model."""
    draw, assignments = Random(seed), dict(ASSIGNMENTS)
    with_adapter = [name for name, adapter in ASSIGNMENTS.items() if adapter]
    if draw.random() < 0.5:
        first, second = draw.sample(with_adapter, 2)
        assignments[first], assignments[second] = assignments[second], assignments[first]
        return assignments, {first, second}
    assignments["general"] = ASSIGNMENTS[draw.choice(with_adapter)]
    return assignments, {"general"}


def build(folder: Path, seed: int) -> dict[str, int]:
    """Train base model and adapters; return how many attempts each adapter took to pass the demo's checks."""
    base.train_base(folder / "base", seed=seed)
    tries: dict[str, int] = {}
    for recipe in ADAPTERS:
        for attempt in range(6):
            try:
                reseeded = replace(recipe, seed=recipe.seed + 10 * attempt)
                adapters.train_adapter(folder / "base", folder / recipe.name, reseeded)
            except AnswerTrainingError:
                continue
            tries[recipe.name] = attempt + 1
            break
        else:
            raise AnswerTrainingError(
                f"{recipe.name} of the base with seed {seed} did not learn its answer in six tries"
            )
    return tries


class Proving:
    """The command on a server, as a script calls it."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        write(folder / "pairs.jsonl")

    def prove(self, config: Path, *more: str) -> tuple[int, dict[str, Any]]:
        """Return the command's exit status and its matrix."""
        file = self._folder / "matrix.json"
        data = ("--data", str(self._folder / "pairs.jsonl"), "--json", str(file))
        status = main(["prove", str(config), *data, "--url", self._url, "--api-key-env", "DEMO_KEY", *more])
        return status, json.loads(file.read_text())

    def wrong(self, assignments: dict[str, str | None], *more: str) -> tuple[int, dict[str, str]]:
        """Return the exit status, and the categories that are assigned wrongly with the model that is better."""
        status, matrix = self.prove(configuration(self._folder / "config.yaml", assignments), *more)
        return status, {
            verdict["category"]: verdict["model"]
            for verdict in matrix["verdicts"]
            if verdict["kind"] in ("use_base", "use_other")
        }


@pytest.fixture
def proving(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proving:
    monkeypatch.setenv("DEMO_KEY", API_KEY)
    return Proving(server.url, tmp_path)


def test_the_assignments_of_the_guide_are_confirmed(proving: Proving, capsys: pytest.CaptureFixture[str]) -> None:
    status, matrix = proving.prove(ROOT / "config/guide.yaml")
    assert status == 0
    assert {name: max(row, key=row.__getitem__) for name, row in matrix["matrix"].items()} == matrix["served_by"]
    assert {verdict["category"]: verdict["kind"] for verdict in matrix["verdicts"]} == {
        **dict.fromkeys(("technical", "medical", "legal"), "helps"),
        "general": "keep_base",
    }
    assert matrix["pairs"] == dict.fromkeys(ASSIGNMENTS, 12) and matrix["notes"] == matrix["left_out"] == []
    assert matrix["served_models"] == [BASE, *(recipe.name for recipe in ADAPTERS), "MoM"]
    assert "`medical`: `medical-lora` helps (+" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1])  # two swapped adapters, and an adapter in place of the base model
def test_a_wrong_assignment_is_found(proving: Proving, seed: int) -> None:
    assignments, wrong = wrong_assignments(seed)
    status, better = proving.wrong(assignments, "--tokens", "2")
    assert (status, better) == (3, {name: ASSIGNMENTS[name] or BASE for name in wrong})


def test_evaluate_reports_the_regret_of_wrong_routes_of_a_running_server(
    proving: Proving, server: Server, tmp_path: Path
) -> None:
    _, proved = proving.prove(ROOT / "config/guide.yaml")
    right = {
        "Explain async/await in JavaScript": "technical",
        "What causes high blood pressure?": "medical",
        "Can my landlord keep my deposit?": "legal",
        "What should I cook tonight?": "general",
    }
    # The labels differ from the routes, so these routes count as wrong.
    wrong = {"How is high blood pressure treated?": "legal", "What should I cook for dinner?": "technical"}
    questions, report = tmp_path / "questions.jsonl", tmp_path / "evaluated.json"
    questions.write_text(
        "".join(json.dumps({"text": text, "category": category}) + "\n" for text, category in (right | wrong).items())
    )
    how = ("--small-changes", "0", "--regret", str(tmp_path / "matrix.json"), "--json", str(report))
    assert main(["evaluate", "--data", str(questions), "--url", server.url, "--api-key-env", "DEMO_KEY", *how]) == 0
    evaluated = json.loads(report.read_text())
    assert [outcome["correct"] for outcome in evaluated["evaluation"]["outcomes"]] == [True] * 4 + [False] * 2
    loglik = proved["matrix"]
    costs = {
        ("legal", "medical-lora"): loglik["legal"]["legal-lora"] - loglik["legal"]["medical-lora"],
        ("technical", BASE): loglik["technical"]["technical-lora"] - loglik["technical"][BASE],
    }
    routes = {(route["label"], route["served_by"]): route["nats"] for route in evaluated["regret"]["routes"]}
    assert routes == pytest.approx(costs) and min(costs.values()) > 1
    assert evaluated["regret"]["mean"]["value"] == pytest.approx(sum(costs.values()) / 6)


def test_likelihoods_match_those_of_transformers_and_peft(proving: Proving, models: DemoModels) -> None:
    """In float32; the server computes in bfloat16."""
    _, matrix = proving.prove(ROOT / "config/guide.yaml", "--models", "medical-lora")
    for adapter in (None, "medical-lora"):
        expected = _likelihoods(models, adapter)
        scores = {category: row[adapter or BASE] for category, row in matrix["matrix"].items()}
        assert scores == pytest.approx(expected, rel=0.02, abs=0.05)


def _likelihoods(models: DemoModels, adapter: str | None) -> dict[str, float]:
    """Return each category's mean over its pairs of the mean log-likelihood of an answer's tokens."""
    import torch
    import yaml
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = {
        category["name"]: category["system_prompt"]
        for category in yaml.safe_load((ROOT / "config/guide.yaml").read_text())["categories"]
    }
    tokenizer = AutoTokenizer.from_pretrained(models.base)
    model = AutoModelForCausalLM.from_pretrained(models.base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, models.adapters[adapter])
    model.eval()
    means: dict[str, list[float]] = {}
    for pair in pairs():
        messages = [{"role": "system", "content": prompts[pair.category]}, {"role": "user", "content": pair.prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, answer = (tokenizer(part, add_special_tokens=False).input_ids for part in (text, pair.answer))
        with torch.inference_mode():
            log_likelihoods = model(input_ids=torch.tensor([[*before, *answer]])).logits[0].log_softmax(-1)
        values = [log_likelihoods[len(before) - 1 + place, token].item() for place, token in enumerate(answer)]
        means.setdefault(pair.category, []).append(sum(values) / len(values))
    return {category: sum(values) / len(values) for category, values in means.items()}


@pytest.mark.parametrize("seed", range(BUILDS))
def test_a_wrong_assignment_is_found_in_every_build(
    tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """Each build has its own seed and its own wrong assignment, and is also tested with the right ones."""
    if not full:
        pytest.skip("every build takes minutes and needs a server, so only in the long form: bash launch/faults.sh")
    monkeypatch.setenv("DEMO_KEY", API_KEY)
    tries = build(tmp_path, seed)
    modules = [f"{name}={tmp_path / name}" for name in tries]
    config = configuration(tmp_path / "served.yaml", ASSIGNMENTS)
    named = ("--served-model-name", BASE, "--router-config", str(config), "--lora-modules", *modules)
    arguments = [str(tmp_path / "base"), *named, "--api-key", API_KEY, *FLAGS]
    with Server(arguments, log=tmp_path / "server.log", directory=tmp_path) as server:
        server.wait(START_SECONDS)
        proving = Proving(server.url, tmp_path)
        assignments, wrong = wrong_assignments(seed)
        right_status, false_alarms = proving.wrong(ASSIGNMENTS)
        status, better = proving.wrong(assignments)
    with capsys.disabled():
        swapped = ", ".join(f"{name}: {assignments[name]}" for name in sorted(wrong))
        print(f"\nbuild {seed}, adapters trained in {list(tries.values())} attempts, wrong assignments {swapped}")
        print(f"  wrong assignments: status {status}, better: {better}")
        print(f"  right assignments: status {right_status}, reported as wrong: {false_alarms or 'none'}", flush=True)
    assert (status, better) == (3, {name: ASSIGNMENTS[name] or BASE for name in wrong})
    assert (right_status, false_alarms) == (0, {})
