"""What other thresholds would give: coverage against precision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.tools.evaluate.outcome import Answer


@dataclass(frozen=True, slots=True)
class Sweep:
    """One threshold for all guesses of a method, moved over every score that one has; highest first."""

    method: str
    thresholds: np.ndarray  # float [points]
    coverage: np.ndarray  # float [points]: the share of the method's prompts in scope that reach it
    precision: np.ndarray  # float [points]: the share of right ones among all that reach it


def sweeps(answers: Sequence[Answer]) -> list[Sweep]:
    """One a method whose guesses have scores to speak of; what a rule matched is no matter of a threshold."""
    scored = [one for one in answers if one.scale in ("similarity", "probability")]
    methods = dict.fromkeys(one.guessed_by for one in scored if one.guessed_by is not None)
    return [_sweep(method, [one for one in scored if one.guessed_by == method]) for method in methods]


def _sweep(method: str, answers: Sequence[Answer]) -> Sweep:
    scores = np.array([one.score for one in answers])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    in_scope = np.cumsum([answers[place].in_scope for place in order])
    right = np.cumsum([answers[place].guessed_right for place in order])
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])  # of equal scores, which come together
    return Sweep(method, scores[last], in_scope[last] / max(int(in_scope[-1]), 1), right[last] / (last + 1))
