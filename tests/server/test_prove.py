"""`prove` on the demo's models: what they were taught shows, and a wrong assignment that was planted is found."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from vllm_lora_router.cli import main
from vllm_lora_router.tools.demo import adapters, base
from vllm_lora_router.tools.demo.answers import ADAPTERS
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.pairs import pairs, write
from vllm_lora_router.tools.demo.server import FLAGS, Server
from vllm_lora_router.tools.demo.teaching import TeachingError

from .conftest import API_KEY, BASE, ROOT, START_SECONDS

OWN = {"technical": "technical-lora", "medical": "medical-lora", "legal": "legal-lora", "general": None}
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


def configuration(file: Path, own: dict[str, str | None]) -> Path:
    """Keyword rules, and categories with the adapters that they are given; None is the base."""
    entries = {name: f"{{model: base{f', lora_name: {adapter}' if adapter else ''}}}" for name, adapter in own.items()}
    file.write_text(CONFIG + "".join(f"  - {{name: {name}, model_scores: [{one}]}}\n" for name, one in entries.items()))
    return file


def planted(seed: int) -> tuple[dict[str, str | None], set[str]]:
    """Two categories' adapters swapped, or an adapter where the base should be; and the categories that are wrong."""
    draw, own = Random(seed), dict(OWN)
    with_adapter = [name for name, adapter in OWN.items() if adapter]
    if draw.random() < 0.5:
        one, other = draw.sample(with_adapter, 2)
        own[one], own[other] = own[other], own[one]
        return own, {one, other}
    own["general"] = OWN[draw.choice(with_adapter)]
    return own, {"general"}


def build(folder: Path, seed: int) -> dict[str, int]:
    """Base and adapters; adapter -> how often it was taught, until it had learnt its answer by the demo's own rules."""
    base.train_base(folder / "base", seed=seed)
    tries: dict[str, int] = {}
    for recipe in ADAPTERS:
        for attempt in range(6):
            try:
                own = replace(recipe, seed=recipe.seed + 10 * attempt)
                adapters.train_adapter(folder / "base", folder / recipe.name, own)
            except TeachingError:
                continue
            tries[recipe.name] = attempt + 1
            break
        else:
            raise TeachingError(f"{recipe.name} of the base with seed {seed} did not learn its answer in six tries")
    return tries


class Proving:
    """The command on a server, as a script would call it."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        write(folder / "pairs.jsonl")

    def prove(self, config: Path, *more: str) -> tuple[int, dict[str, Any]]:
        """Its exit status and its matrix."""
        file = self._folder / "matrix.json"
        data = ("--data", str(self._folder / "pairs.jsonl"), "--json", str(file))
        status = main(["prove", str(config), *data, "--url", self._url, "--api-key-env", "DEMO_KEY", *more])
        return status, json.loads(file.read_text())

    def accused(self, own: dict[str, str | None], *more: str) -> tuple[int, dict[str, str]]:
        """Its exit status, and the categories whose assignment it calls wrong with what it says would be right."""
        status, matrix = self.prove(configuration(self._folder / "config.yaml", own), *more)
        return status, {one["category"]: one["model"] for one in matrix["verdicts"] if one["kind"] in ("base", "other")}


@pytest.fixture
def proving(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proving:
    monkeypatch.setenv("DEMO_KEY", API_KEY)
    return Proving(server.url, tmp_path)


def test_the_guides_own_assignments_are_right(proving: Proving, capsys: pytest.CaptureFixture[str]) -> None:
    status, matrix = proving.prove(ROOT / "config/guide.yaml")
    assert status == 0
    assert {name: max(row, key=row.__getitem__) for name, row in matrix["matrix"].items()} == matrix["served_by"]
    assert {one["category"]: one["kind"] for one in matrix["verdicts"]} == {
        **dict.fromkeys(("technical", "medical", "legal"), "helps"),
        "general": "stays",
    }
    assert matrix["pairs"] == dict.fromkeys(OWN, 12) and matrix["notes"] == matrix["left_out"] == []
    assert matrix["url_model_list"] == [BASE, *(recipe.name for recipe in ADAPTERS), "MoM"]
    assert "`medical`: `medical-lora` helps (+" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1])  # an adapter in the base's place, and two that were swapped
def test_a_wrong_assignment_that_was_planted_is_found(proving: Proving, seed: int) -> None:
    own, wrong = planted(seed)
    status, accused = proving.accused(own, "--tokens", "2")
    assert (status, accused) == (3, {name: OWN[name] or BASE for name in wrong})


def test_what_wrong_routes_cost_is_told_of_a_running_server(proving: Proving, server: Server, tmp_path: Path) -> None:
    _, proved = proving.prove(ROOT / "config/guide.yaml")
    right = {
        "Explain async/await in JavaScript": "technical",
        "What causes high blood pressure?": "medical",
        "Can my landlord keep my deposit?": "legal",
        "What should I cook tonight?": "general",
    }
    # Labelled so that where they go is wrong.
    wrong = {"How is high blood pressure treated?": "legal", "What should I cook for dinner?": "technical"}
    asked, found = tmp_path / "asked.jsonl", tmp_path / "evaluated.json"
    asked.write_text(
        "".join(json.dumps({"text": text, "category": own}) + "\n" for text, own in (right | wrong).items())
    )
    how = ("--small-changes", "0", "--regret", str(tmp_path / "matrix.json"), "--json", str(found))
    assert main(["evaluate", "--data", str(asked), "--url", server.url, "--api-key-env", "DEMO_KEY", *how]) == 0
    evaluated = json.loads(found.read_text())
    assert [one["right"] for one in evaluated["evaluation"]["answers"]] == [True] * 4 + [False] * 2
    loglik = proved["matrix"]
    costs = {
        ("legal", "medical-lora"): loglik["legal"]["legal-lora"] - loglik["legal"]["medical-lora"],
        ("technical", BASE): loglik["technical"]["technical-lora"] - loglik["technical"][BASE],
    }
    ways = {(way["label"], way["taken"]): way["nats"] for way in evaluated["regret"]["ways"]}
    assert ways == pytest.approx(costs) and min(costs.values()) > 1
    assert evaluated["regret"]["mean"]["value"] == pytest.approx(sum(costs.values()) / 6)


def test_likelihoods_are_those_of_the_models_themselves(proving: Proving, models: DemoModels) -> None:
    """By transformers and PEFT in float32; the server computes in bfloat16."""
    _, matrix = proving.prove(ROOT / "config/guide.yaml", "--models", "medical-lora")
    for adapter in (None, "medical-lora"):
        expected = _likelihoods(models, adapter)
        found = {category: row[adapter or BASE] for category, row in matrix["matrix"].items()}
        assert found == pytest.approx(expected, rel=0.02, abs=0.05)


def _likelihoods(models: DemoModels, adapter: str | None) -> dict[str, float]:
    """Each category's mean over its pairs of the mean over an answer's tokens."""
    import torch
    import yaml
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = {
        one["name"]: one["system_prompt"]
        for one in yaml.safe_load((ROOT / "config/guide.yaml").read_text())["categories"]
    }
    tokenizer = AutoTokenizer.from_pretrained(models.base)
    model = AutoModelForCausalLM.from_pretrained(models.base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, models.adapters[adapter])
    model.eval()
    found: dict[str, list[float]] = {}
    for pair in pairs():
        messages = [{"role": "system", "content": prompts[pair.category]}, {"role": "user", "content": pair.prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, answer = (tokenizer(part, add_special_tokens=False).input_ids for part in (text, pair.answer))
        with torch.inference_mode():
            told = model(input_ids=torch.tensor([[*before, *answer]])).logits[0].log_softmax(-1)
        values = [told[len(before) - 1 + place, token].item() for place, token in enumerate(answer)]
        found.setdefault(pair.category, []).append(sum(values) / len(values))
    return {category: sum(values) / len(values) for category, values in found.items()}


@pytest.mark.once
@pytest.mark.parametrize("seed", range(BUILDS))
def test_what_was_planted_is_found_in_every_build(
    tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """Builds of base and adapters by seeds of their own, each with its own wrong assignment, and as it should be."""
    if not full:
        pytest.skip("at full length only: every build takes minutes, and a server of its own")
    monkeypatch.setenv("DEMO_KEY", API_KEY)
    tries = build(tmp_path, seed)
    modules = [f"{name}={tmp_path / name}" for name in tries]
    config = configuration(tmp_path / "served.yaml", OWN)
    named = ("--served-model-name", BASE, "--router-config", str(config), "--lora-modules", *modules)
    arguments = [str(tmp_path / "base"), *named, "--api-key", API_KEY, *FLAGS]
    with Server(arguments, log=tmp_path / "server.log", directory=tmp_path) as server:
        server.wait(START_SECONDS)
        proving = Proving(server.url, tmp_path)
        own, wrong = planted(seed)
        right_status, falsely = proving.accused(OWN)
        status, accused = proving.accused(own)
    with capsys.disabled():
        said = ", ".join(f"{name} by {own[name]}" for name in sorted(wrong))
        print(f"\nbuild {seed}, adapters taught in {list(tries.values())} tries, planted {said}")
        print(f"  as planted: status {status}, said to be better: {accused}")
        print(f"  as it should be: status {right_status}, accused: {falsely or 'nobody'}", flush=True)
    assert (status, accused) == (3, {name: OWN[name] or BASE for name in wrong})
    assert (right_status, falsely) == (0, {})
