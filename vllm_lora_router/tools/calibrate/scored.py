"""What a method says of many prompts, whatever its thresholds, and the thresholds that decide on it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.config.yaml_document import Path_

# Of fewer prompts no share is worth a threshold.
FEWEST = 20


@dataclass(frozen=True, slots=True)
class Knob:
    """One threshold of a configuration."""

    path: Path_  # its place in the file; in a mapping by category the category comes last
    columns: tuple[int, ...]  # the scores that must reach it
    threshold: float  # as it is
    fixed: str | None = None  # why it is left so; None: it may be chosen


@dataclass(frozen=True)
class Scored:
    """One method's scores of prompts. The best of those that reach their threshold answers; of equals the first."""

    method: str  # in the user's words
    categories: tuple[str, ...]  # a column
    values: np.ndarray  # float [prompts, columns]; NaN where nothing is known
    right: np.ndarray | None  # bool [prompts, columns]: whether that category should answer; None: nobody knows
    labelled: Mapping[str, int]  # category -> prompts that it should answer
    knobs: tuple[Knob, ...]  # in the order of their columns

    @property
    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The best score of each knob's columns, -inf where none is known, and its column: [prompts, knobs] each."""
        known = np.where(np.isnan(self.values), -np.inf, self.values)
        columns = np.empty((len(known), len(self.knobs)), dtype=int)
        for place, knob in enumerate(self.knobs):
            columns[:, place] = np.array(knob.columns)[known[:, knob.columns].argmax(axis=1)]
        return np.take_along_axis(known, columns, axis=1), columns


def too_few(scored: Scored) -> list[str]:
    """The categories among the columns that fewer than 20 prompts are labelled with, and how many are."""
    counts = {name: scored.labelled.get(name, 0) for name in dict.fromkeys(scored.categories)}
    return [f"{name} ({count})" for name, count in counts.items() if count < FEWEST]
