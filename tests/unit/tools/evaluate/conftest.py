"""Prompts, outcomes and configurations to evaluate; they need no model."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.outcome import Outcome
from vllm_lora_router.tools.evaluate.targets import ConfigTarget
from vllm_lora_router.types import Candidate, Classification, Method, Plan, Scale, Step

Configure = Callable[..., ConfigTarget]

CONFIG = """
model_config: {base: {loras: [{name: medical-lora}, {name: legal-lora}]}}
default_model: base
keyword_rules:
  - {category: medical, keywords: [fever, cough]}
  - {category: legal, keywords: [lawsuit, court]}
categories:
  - {name: medical, model_scores: [{model: base, lora_name: medical-lora}]}
  - {name: legal, model_scores: [{model: base, lora_name: legal-lora}]}
"""
NAMES = ["coding", "legal", "medical"]
EXAMPLES = (
    Example("What helps against a fever?", "medical", location="p.jsonl:1"),
    Example("I have had a COUGH for a week", "medical", location="p.jsonl:2"),
    Example("my knee hurts", "medical", location="p.jsonl:3"),
    Example("How long does a lawsuit take?", "legal", location="p.jsonl:4"),
    Example("The court has a cough to complain of", "legal", location="p.jsonl:5"),
    Example("Good morning", None, location="p.jsonl:6"),
)


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Return a target of the configuration above, with lines appended."""

    def open_configuration(more: str = "", text: str = CONFIG) -> ConfigTarget:
        file = tmp_path / "config.yaml"
        file.write_text(text + more, "utf-8")
        loaded = load(file)
        return ConfigTarget(loaded, served_base(loaded))

    return open_configuration


def step(
    category: str | None, score: float = 0.9, *, accepted: bool = True, method: Method = "domain", **changes: Any
) -> Step:
    """Return a method's classification."""
    scale: Scale = changes.pop("scale", "probability")
    scores = {category: score} if category else {}
    return Step(method, 1.0, Classification(category, score, scores, scale, 0.5, accepted, **changes))


def plan(*steps: Step, category: str | None = None, adapter: str | None = None, failure: Any = None) -> Plan:
    """Return a plan of these steps; `category` serves requests without an accepted category."""
    last = steps[-1].classification if steps else None
    accepted = last is not None and last.accepted
    chosen = last.category if accepted and last is not None else category
    method = steps[-1].method if accepted else None
    candidates = (Candidate(adapter or "base", adapter),)
    return Plan(
        steps, failure or ("routed" if accepted else "below_threshold"), chosen, None, method, candidates, "0a1b2c3d"
    )


def outcome(label: str | None, predicted: str | None, score: float = 0.9, **changes: Any) -> Outcome:
    """Return the outcome of a labelled prompt; a domain model accepted `predicted`, or nothing if it is None."""
    accepted = predicted is not None
    guess = changes.pop("guess", predicted)
    fields: dict[str, Any] = {
        "text": changes.pop("text", f"{label} {predicted} {score}"),
        "label": label,
        "location": "p.jsonl:1",
        "chosen": predicted,
        "accepted": accepted,
        "correct": predicted == label,
        "method": "domain" if accepted else None,
        "guess": guess,
        "score": score,
        "scale": "probability",
        "guess_method": "domain",
        "adapter": f"{predicted}-lora" if accepted else None,
        "failure": None,
    }
    return Outcome(**{**fields, **changes})


def random_outcomes(count: int, seed: int = 1, *, outside: float = 0.2) -> list[Outcome]:
    """Return outcomes that are correct in two of three cases, more often with a higher probability."""
    random = Random(seed)
    outcomes = []
    for number in range(count):
        label = None if random.random() < outside else random.choice(NAMES)
        score = round(random.random() * (0.6 if label is None else 1.0), 2)
        guess = label if label and random.random() < 0.3 + score / 2 else random.choice(NAMES)
        outcomes.append(outcome(label, guess if score > 0.4 else None, score, guess=guess, text=f"{number}"))
    return outcomes
