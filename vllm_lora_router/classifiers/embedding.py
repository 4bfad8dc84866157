"""Embedding rules: a text belongs where texts like it belong."""

import hashlib
from collections.abc import Sequence

import numpy as np

from vllm_lora_router.classifiers.encoder import Encoder
from vllm_lora_router.classifiers.scored import Choice, Scores
from vllm_lora_router.config.schema import EmbeddingRule
from vllm_lora_router.values import Method, Scale


class EmbeddingScorer:
    """Cosine similarity of a text with each rule's examples, aggregated by rule."""

    method: Method = "embedding"
    scale: Scale = "similarity"

    def __init__(self, rules: Sequence[tuple[int, EmbeddingRule]], encoder: Encoder, window_count: int) -> None:
        """Takes each rule with its place in the configuration's list, which the evidence names."""
        self.rules = tuple(rules)
        self.encoder = encoder
        self.worker = encoder.worker
        self.runs_on = encoder.network.runs_on
        self.window_count = window_count
        self.choices = [Choice(rule.category, rule.threshold) for _, rule in rules]
        self.fingerprint = hashlib.sha256(f"{encoder.fingerprint} {window_count} {rules!r}".encode()).hexdigest()
        self._texts = [text for _, rule in rules for text in rule.examples]
        self._examples = encoder.encode_elsewhere(self._texts)  # [examples, dimensions]
        ends = np.cumsum([len(rule.examples) for _, rule in rules])
        self._slices = [
            slice(int(end) - len(rule.examples), int(end)) for end, (_, rule) in zip(ends, rules, strict=True)
        ]

    def windows(self, text: str) -> list[str]:
        return self.encoder.windows(text, self.window_count)

    def score(self, texts: Sequence[str]) -> Scores:
        similarity = self.encoder.encode(texts) @ self._examples.T  # [texts, examples]
        values = np.empty((len(texts), len(self.rules)), dtype=np.float32)
        for column, (_, rule) in enumerate(self.rules):
            own = similarity[:, self._slices[column]]
            # `any`: one example over the threshold is enough, which is what the greatest similarity says.
            values[:, column] = own.mean(axis=1) if rule.aggregation_method in ("mean", "avg") else own.max(axis=1)
        nearest = similarity.argmax(axis=1)
        evidence = [
            {"nearest": self._texts[index], "similarity": round(float(similarity[row, index]), 4)}
            for row, index in enumerate(nearest)
        ]
        return Scores(values, evidence)
