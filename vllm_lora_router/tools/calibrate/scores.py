"""One method's scores of many prompts, and the thresholds that apply to them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.config.yaml_document import KeyPath

# A share of fewer prompts is too uncertain for a threshold.
MIN_LABELLED = 20


@dataclass(frozen=True, slots=True)
class Threshold:
    """One threshold of a configuration."""

    path: KeyPath  # key path in the file; in a mapping by category, the category is the last key
    columns: tuple[int, ...]  # the scores that it applies to
    value: float
    fixed: str | None = None  # reason why it cannot be chosen; None: it can


@dataclass(frozen=True)
class MethodScores:
    """One method's scores of prompts, whatever its thresholds are.

    The method accepts the best score among those that reach their threshold; the first one wins a tie.
    """

    method: str  # as printed
    categories: tuple[str, ...]  # of each column
    values: np.ndarray  # float [prompts, columns]; NaN: unknown
    correct: np.ndarray | None  # whether the category is the prompt's label, bool [prompts, columns]; None: unlabelled
    labelled: Mapping[str, int]  # category -> prompts with this label
    thresholds: tuple[Threshold, ...]  # in the order of their columns

    @property
    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The best score for each threshold, -inf if unknown, and its column: [prompts, thresholds] each."""
        known = np.where(np.isnan(self.values), -np.inf, self.values)
        columns = np.empty((len(known), len(self.thresholds)), dtype=int)
        for index, threshold in enumerate(self.thresholds):
            columns[:, index] = np.array(threshold.columns)[known[:, threshold.columns].argmax(axis=1)]
        return np.take_along_axis(known, columns, axis=1), columns


def rarely_labelled(scores: MethodScores) -> list[str]:
    """Return the categories with fewer than 20 labelled prompts, each with their number."""
    counts = {name: scores.labelled.get(name, 0) for name in dict.fromkeys(scores.categories)}
    return [f"{name} ({count})" for name, count in counts.items() if count < MIN_LABELLED]
