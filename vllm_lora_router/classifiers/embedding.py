"""The embedding scorer: embedding rules first, then the probabilities of a head, from one pass of the encoder."""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from vllm_lora_router.classifiers.head_loader import ConfiguredHead
from vllm_lora_router.classifiers.model_classifier import ScoreColumn, ScoreGroup, Scores
from vllm_lora_router.classifiers.models.encoder import Encoder
from vllm_lora_router.config.schema import EmbeddingRule
from vllm_lora_router.types import Method


class EmbeddingScorer:
    """Scores texts by embedding rules, a head, or both. The head decides if no rule reaches its threshold."""

    method: Method = "embedding"

    def __init__(
        self,
        rules: Sequence[tuple[int, EmbeddingRule]],
        encoder: Encoder,
        window_count: int,
        head: ConfiguredHead | None = None,
        allowed: Collection[str] | None = None,
    ) -> None:
        """Encode the examples of the rules.

        Args:
            rules: Each rule with its position in the configuration's list, which the evidence names.
            allowed: The categories that the head may choose; None: all.
        """
        self.encoder = encoder
        self.worker = encoder.worker
        self.runs_on = encoder.model.runs_on
        self.thread_safe = encoder.model.thread_safe
        self.window_count = window_count
        self.head = head
        self.rules = RuleScorer([rule for _, rule in rules], encoder) if rules else None
        self._columns: list[int] = []
        self.groups: list[ScoreGroup] = [self.rules.group] if self.rules else []
        if head is not None:
            categories = head.head.categories
            self._columns = [
                index for index, category in enumerate(categories) if allowed is None or category in allowed
            ]
            columns = [ScoreColumn(categories[index], head.thresholds[categories[index]]) for index in self._columns]
            self.groups.append(ScoreGroup("probability", columns))
        inputs = (encoder.fingerprint, window_count, rules, self._columns, head and head.fingerprint)
        self.fingerprint = hashlib.sha256(repr(inputs).encode()).hexdigest()

    def windows(self, text: str) -> list[str]:
        return self.encoder.windows(text, self.window_count)

    def score(self, texts: Sequence[str]) -> list[Scores]:
        vectors = self.encoder.encode(texts)
        scores = [self.rules.score(vectors)] if self.rules else []
        if self.head is not None:
            scores.append(self._head_scores(self.head, vectors))
        return scores

    def _head_scores(self, head: ConfiguredHead, vectors: np.ndarray) -> Scores:
        probabilities = head.head(vectors)
        none = 1 - probabilities.sum(axis=1)
        evidence = [{"none": round(float(probability), 4)} for probability in none]
        return Scores(probabilities[:, self._columns], evidence)


class RuleScorer:
    """Scores each embedding rule by the cosine similarity of a text with the rule's examples."""

    def __init__(self, rules: Sequence[EmbeddingRule], encoder: Encoder) -> None:
        self.group = ScoreGroup("similarity", [ScoreColumn(rule.category, rule.threshold) for rule in rules])
        self._rules = rules
        self._texts = [text for rule in rules for text in rule.examples]
        self._examples = encoder.encode_blocking(self._texts)  # [examples, dimensions]
        ends = np.cumsum([len(rule.examples) for rule in rules])
        self._slices = [slice(int(end) - len(rule.examples), int(end)) for end, rule in zip(ends, rules, strict=True)]

    def score(self, vectors: np.ndarray) -> Scores:
        """Return the scores of embedded texts.

        Args:
            vectors: float32 [texts, dimensions], each row of length 1.
        """
        similarity = vectors @ self._examples.T  # [texts, examples]
        values = np.empty((len(vectors), len(self._rules)), dtype=np.float32)
        for column, rule in enumerate(self._rules):
            of_rule = similarity[:, self._slices[column]]
            # `any` requires one example above the threshold, which is the same test as on the maximum.
            mean = rule.aggregation_method in ("mean", "avg")
            values[:, column] = of_rule.mean(axis=1) if mean else of_rule.max(axis=1)
        nearest = similarity.argmax(axis=1)
        evidence = [
            {"nearest": self._texts[index], "similarity": round(float(similarity[row, index]), 4)}
            for row, index in enumerate(nearest)
        ]
        return Scores(values, evidence)
