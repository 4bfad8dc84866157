"""Prompts, answers and configurations to evaluate, none of which needs a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.outcome import Answer
from vllm_lora_router.tools.evaluate.targets import Configuration
from vllm_lora_router.types import Candidate, Classification, Method, Plan, Scale, Step

Configure = Callable[..., Configuration]

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
EXAMPLES = (
    Example("What helps against a fever?", "medical", place="p.jsonl:1"),
    Example("I have had a COUGH for a week", "medical", place="p.jsonl:2"),
    Example("my knee hurts", "medical", place="p.jsonl:3"),
    Example("How long does a lawsuit take?", "legal", place="p.jsonl:4"),
    Example("The court has a cough to complain of", "legal", place="p.jsonl:5"),
    Example("Good morning", None, place="p.jsonl:6"),
)


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Opens the configuration above with lines added, to be evaluated."""

    def open_configuration(more: str = "", text: str = CONFIG) -> Configuration:
        file = tmp_path / "config.yaml"
        file.write_text(text + more, "utf-8")
        loaded = load(file)
        return Configuration(loaded, served_base(loaded))

    return open_configuration


def step(
    category: str | None, score: float = 0.9, *, sure: bool = True, method: Method = "domain", **changes: Any
) -> Step:
    """A method's answer."""
    scale: Scale = changes.pop("scale", "probability")
    scores = {category: score} if category else {}
    return Step(method, 1.0, Classification(category, score, scores, scale, 0.5, sure, **changes))


def plan(*steps: Step, category: str | None = None, adapter: str | None = None, failure: Any = None) -> Plan:
    """A plan of these steps; `category` is what takes a request that no method is sure of."""
    last = steps[-1].classification if steps else None
    sure = last is not None and last.accepted
    chosen = last.category if sure and last is not None else category
    method = steps[-1].method if sure else None
    candidates = (Candidate(adapter or "base", adapter),)
    return Plan(
        steps, failure or ("routed" if sure else "below_threshold"), chosen, None, method, candidates, "0a1b2c3d"
    )


def answer(label: str | None, found: str | None, score: float = 0.9, **changes: Any) -> Answer:
    """A prompt with a label, for which a domain model was sure of what it found, or not sure where that is None."""
    sure = found is not None
    guess = changes.pop("guess", found)
    fields: dict[str, Any] = {
        "text": changes.pop("text", f"{label} {found} {score}"),
        "label": label,
        "place": "p.jsonl:1",
        "chosen": found,
        "sure": sure,
        "right": found == label,
        "method": "domain" if sure else None,
        "guess": guess,
        "score": score,
        "scale": "probability",
        "guessed_by": "domain",
        "adapter": f"{found}-lora" if sure else None,
        "failure": None,
    }
    return Answer(**{**fields, **changes})
