"""What an embedding says: rules by the texts that it is like, then a head's probabilities; one pass of the encoder."""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from vllm_lora_router.classifiers.head_loader import UsedHead
from vllm_lora_router.classifiers.model_classifier import Choice, Part, Scores
from vllm_lora_router.classifiers.models.encoder import Encoder
from vllm_lora_router.config.schema import EmbeddingRule
from vllm_lora_router.types import Method


class EmbeddingScorer:
    """Embedding rules, a head, or both: the head is asked where no rule is sure."""

    method: Method = "embedding"

    def __init__(
        self,
        rules: Sequence[tuple[int, EmbeddingRule]],
        encoder: Encoder,
        window_count: int,
        head: UsedHead | None = None,
        allowed: Collection[str] | None = None,
    ) -> None:
        """Takes each rule with its place in the configuration's list, which the evidence names.

        Args:
            allowed: the categories that the head may choose; None: all.
        """
        self.encoder = encoder
        self.worker = encoder.worker
        self.runs_on = encoder.network.runs_on
        self.on_any_thread = encoder.network.on_any_thread
        self.window_count = window_count
        self.head = head
        self.rules = Rules([rule for _, rule in rules], encoder) if rules else None
        self._columns: list[int] = []
        self.parts: list[Part] = [self.rules.part] if self.rules else []
        if head is not None:
            known = head.head.categories
            self._columns = [place for place, name in enumerate(known) if allowed is None or name in allowed]
            choices = [Choice(known[place], head.thresholds[known[place]]) for place in self._columns]
            self.parts.append(Part("probability", choices))
        made_of = (encoder.fingerprint, window_count, rules, self._columns, head and head.fingerprint)
        self.fingerprint = hashlib.sha256(repr(made_of).encode()).hexdigest()

    def windows(self, text: str) -> list[str]:
        return self.encoder.windows(text, self.window_count)

    def score(self, texts: Sequence[str]) -> list[Scores]:
        vectors = self.encoder.encode(texts)
        found = [self.rules.score(vectors)] if self.rules else []
        if self.head is not None:
            found.append(self._by_head(self.head, vectors))
        return found

    def _by_head(self, head: UsedHead, vectors: np.ndarray) -> Scores:
        probabilities = head.head(vectors)
        none = 1 - probabilities.sum(axis=1)
        return Scores(probabilities[:, self._columns], [{"none": round(float(one), 4)} for one in none])


class Rules:
    """Cosine similarity of a text with each rule's examples, aggregated by rule."""

    def __init__(self, rules: Sequence[EmbeddingRule], encoder: Encoder) -> None:
        self.part = Part("similarity", [Choice(rule.category, rule.threshold) for rule in rules])
        self._rules = rules
        self._texts = [text for rule in rules for text in rule.examples]
        self._examples = encoder.encode_elsewhere(self._texts)  # [examples, dimensions]
        ends = np.cumsum([len(rule.examples) for rule in rules])
        self._slices = [slice(int(end) - len(rule.examples), int(end)) for end, rule in zip(ends, rules, strict=True)]

    def score(self, vectors: np.ndarray) -> Scores:
        """Of embedded texts, float32 [texts, dimensions]."""
        similarity = vectors @ self._examples.T  # [texts, examples]
        values = np.empty((len(vectors), len(self._rules)), dtype=np.float32)
        for column, rule in enumerate(self._rules):
            own = similarity[:, self._slices[column]]
            # `any`: one example over the threshold is enough, which is what the greatest similarity says.
            values[:, column] = own.mean(axis=1) if rule.aggregation_method in ("mean", "avg") else own.max(axis=1)
        nearest = similarity.argmax(axis=1)
        evidence = [
            {"nearest": self._texts[index], "similarity": round(float(similarity[row, index]), 4)}
            for row, index in enumerate(nearest)
        ]
        return Scores(values, evidence)
