"""What each method that has thresholds says of labelled prompts: each asked directly, whatever others say before it."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from vllm_lora_router.classifiers.factory import build
from vllm_lora_router.classifiers.model_classifier import Part, Scorer
from vllm_lora_router.classifiers.thresholds import DIGITS
from vllm_lora_router.config import Loaded
from vllm_lora_router.config.schema import EmbeddingRule
from vllm_lora_router.config.warnings import methods_of
from vllm_lora_router.config.yaml_document import Path_
from vllm_lora_router.tools.calibrate.scored import Knob, Scored
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.progress import Told
from vllm_lora_router.types import Method, Scale

TOGETHER = 32  # texts of one pass
RULES, HEAD, DOMAIN = "embedding rules", "head", "domain model"
NAMES: dict[tuple[Method, Scale], str] = {
    ("embedding", "similarity"): RULES,
    ("embedding", "probability"): HEAD,
    ("domain", "probability"): DOMAIN,
}
HEAD_PATH: Path_ = ("classifier", "embedding_model", "thresholds")
DOMAIN_PATH: Path_ = ("classifier", "category_model", "threshold")


def score(loaded: Loaded, examples: Sequence[Example], told: Told = lambda what, done, of: None) -> list[Scored]:
    """The scores of embedding rules, head and domain model, as far as the configuration has them. Takes its time.

    Raises:
        ClassifierError: a model is missing, or does not fit its settings.
    """
    texts = [example.text for example in examples]
    found: list[Scored] = []
    for method, classifier in build(_scored_alone(loaded)).scored.items():
        scorer = classifier.scorer
        values = _scores(scorer, texts, lambda done, method=method: told(f"{method} scores", done, len(texts)))
        for part, of_part in zip(scorer.parts, values, strict=True):
            found.append(_labelled(NAMES[method, part.scale], part, of_part, loaded, examples))
    return found


def knobs(method: str, thresholds: Sequence[tuple[str, float]]) -> tuple[Knob, ...]:
    """The thresholds of a head, one a category, or the one of a domain model; of a column each: category, threshold."""
    if method == DOMAIN:
        return (Knob(DOMAIN_PATH, tuple(range(len(thresholds))), thresholds[0][1]),)
    return tuple(Knob((*HEAD_PATH, name), (column,), value) for column, (name, value) in enumerate(thresholds))


def rule_knob(place: int, column: int, rule: EmbeddingRule) -> Knob:
    """The threshold of the rule at a place in the configuration's list."""
    return Knob(("embedding_rules", place, "threshold"), (column,), rule.threshold)


def _labelled(method: str, part: Part, values: np.ndarray, loaded: Loaded, examples: Sequence[Example]) -> Scored:
    categories = tuple(choice.category for choice in part.choices)
    own = knobs(method, [(choice.category, choice.threshold) for choice in part.choices])
    if method == RULES:
        own = tuple(rule_knob(place, column, rule) for column, (place, rule) in enumerate(_rules(loaded)))
    right = np.array([[example.category == category for category in categories] for example in examples])
    labels = Counter(example.category for example in examples if example.category is not None)
    return Scored(method, categories, values, right, labels, own)


def _scored_alone(loaded: Loaded) -> Loaded:
    """The same with no other methods than those that have scores."""
    configured = methods_of(loaded.config)
    scored: list[Method] = [method for method in ("embedding", "domain") if configured.get(method)]
    settings = loaded.config.router.model_copy(update={"methods": scored})
    return dataclasses.replace(loaded, config=loaded.config.model_copy(update={"router": settings}))


def _rules(loaded: Loaded) -> list[tuple[int, EmbeddingRule]]:
    allowed = {one.name for one in loaded.config.categories if one.may_be_chosen_by("embedding")}
    return [(place, rule) for place, rule in enumerate(loaded.config.embedding_rules) if rule.category in allowed]


def _scores(scorer: Scorer, texts: Sequence[str], told: Callable[[int], None]) -> list[np.ndarray]:
    """For each part [texts, choices], rounded as what is decided on; those of like length are scored together."""
    values = [np.empty((len(texts), len(part.choices))) for part in scorer.parts]
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for start in range(0, len(order), TOGETHER):
        places = order[start : start + TOGETHER]
        windows = [scorer.windows(texts[place]) for place in places]
        flat = [window for of_text in windows for window in of_text]
        starts = np.cumsum([0, *map(len, windows[:-1])])
        counts = np.array(list(map(len, windows)))[:, None]
        for own, scores in zip(values, scorer.worker.run_blocking(lambda flat=flat: scorer.score(flat)), strict=True):
            own[places] = np.add.reduceat(scores.values, starts, axis=0) / counts
        told(start + len(places))
    return [np.round(own, DIGITS) for own in values]
