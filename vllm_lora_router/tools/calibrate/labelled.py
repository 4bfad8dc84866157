"""Scores of labelled prompts under each method that has thresholds, computed independently of the other methods."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from vllm_lora_router.classifiers.factory import build
from vllm_lora_router.classifiers.model_classifier import ScoreGroup, Scorer
from vllm_lora_router.classifiers.thresholds import SCORE_DIGITS
from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.config.methods import configured_methods
from vllm_lora_router.config.schema import EmbeddingRule
from vllm_lora_router.config.yaml_document import KeyPath
from vllm_lora_router.tools.calibrate.scores import MethodScores, Threshold
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.progress import ReportProgress, no_progress
from vllm_lora_router.types import Method, Scale

BATCH_SIZE = 32  # texts
RULES, HEAD, DOMAIN = "embedding rules", "head", "domain model"
NAMES: dict[tuple[Method, Scale], str] = {
    ("embedding", "similarity"): RULES,
    ("embedding", "probability"): HEAD,
    ("domain", "probability"): DOMAIN,
}
HEAD_PATH: KeyPath = ("classifier", "embedding_model", "thresholds")
DOMAIN_PATH: KeyPath = ("classifier", "category_model", "threshold")


def score_examples(
    loaded: LoadedConfig, examples: Sequence[Example], report_progress: ReportProgress = no_progress
) -> list[MethodScores]:
    """Return the scores of the configured embedding rules, head and domain model. Loads models.

    Raises:
        ClassifierError: A model is missing, or does not match its settings.
    """
    texts = [example.text for example in examples]
    results: list[MethodScores] = []
    for method, classifier in build(_only_scored_methods(loaded)).model_classifiers.items():
        scorer = classifier.scorer

        def on_batch(done: int, method: Method = method) -> None:
            report_progress(f"{method} scores", done, len(texts))

        values = _score_texts(scorer, texts, on_batch)
        for group, of_group in zip(scorer.groups, values, strict=True):
            results.append(_with_labels(NAMES[method, group.scale], group, of_group, loaded, examples))
    return results


def model_thresholds(method: str, columns: Sequence[tuple[str, float]]) -> tuple[Threshold, ...]:
    """Return the thresholds of a head, one per category, or the one threshold of a domain model.

    Args:
        columns: Category and current threshold of each column.
    """
    if method == DOMAIN:
        return (Threshold(DOMAIN_PATH, tuple(range(len(columns))), columns[0][1]),)
    return tuple(Threshold((*HEAD_PATH, name), (column,), value) for column, (name, value) in enumerate(columns))


def rule_threshold(index: int, column: int, rule: EmbeddingRule) -> Threshold:
    """Return the threshold of a rule, given its index in the configuration's list."""
    return Threshold(("embedding_rules", index, "threshold"), (column,), rule.threshold)


def _with_labels(
    method: str, group: ScoreGroup, values: np.ndarray, loaded: LoadedConfig, examples: Sequence[Example]
) -> MethodScores:
    categories = tuple(column.category for column in group.columns)
    if method == RULES:
        rules = enumerate(_rules(loaded))
        thresholds = tuple(rule_threshold(index, column, rule) for column, (index, rule) in rules)
    else:
        thresholds = model_thresholds(method, [(column.category, column.threshold) for column in group.columns])
    correct = np.array([[example.category == category for category in categories] for example in examples])
    labels = Counter(example.category for example in examples if example.category is not None)
    return MethodScores(method, categories, values, correct, labels, thresholds)


def _only_scored_methods(loaded: LoadedConfig) -> LoadedConfig:
    """Return the configuration without methods that have no scores."""
    configured = configured_methods(loaded.config)
    methods: list[Method] = [method for method in ("embedding", "domain") if configured.get(method)]
    settings = loaded.config.router.model_copy(update={"methods": methods})
    return dataclasses.replace(loaded, config=loaded.config.model_copy(update={"router": settings}))


def _rules(loaded: LoadedConfig) -> list[tuple[int, EmbeddingRule]]:
    """Return the embedding rules that can choose their category, with their indices in the configuration."""
    allowed = {category.name for category in loaded.config.categories if category.may_be_chosen_by("embedding")}
    return [(index, rule) for index, rule in enumerate(loaded.config.embedding_rules) if rule.category in allowed]


def _score_texts(scorer: Scorer, texts: Sequence[str], on_batch: Callable[[int], None]) -> list[np.ndarray]:
    """Return the scores of each group, [texts, columns], rounded as for decisions.

    Texts of similar length are scored together.
    """
    values = [np.empty((len(texts), len(group.columns))) for group in scorer.groups]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        windows = [scorer.windows(texts[index]) for index in batch]
        flat = [window for of_text in windows for window in of_text]
        starts = np.cumsum([0, *map(len, windows[:-1])])
        counts = np.array(list(map(len, windows)))[:, None]
        groups = scorer.worker.run_blocking(lambda flat=flat: scorer.score(flat))
        for of_group, scores in zip(values, groups, strict=True):
            of_group[batch] = np.add.reduceat(scores.values, starts, axis=0) / counts
        on_batch(start + len(batch))
    return [np.round(of_group, SCORE_DIGITS) for of_group in values]
