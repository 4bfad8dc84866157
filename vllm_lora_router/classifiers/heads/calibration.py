"""Scores that held-out examples got, as probabilities: a scale, and a score that stands for no category."""

from dataclasses import dataclass

import numpy as np

from vllm_lora_router.classifiers.heads.head import probabilities

LEAST = 1e-12
_SCALES = (0.05, 200.0)


@dataclass(frozen=True)
class Calibration:
    """See `Head`: the score that no category has, and what all scores are multiplied by."""

    scale: float
    none: float
    loss: float  # mean negative log-likelihood of the held-out labels, in nats


def calibrate(scores: np.ndarray, labels: np.ndarray, membership: np.ndarray, weights: np.ndarray) -> Calibration:
    """The most likely scale and score of no category.

    A scale alone is temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Args:
        scores: float [examples, outputs], of a head that did not see the example.
        labels: int [examples]: a column of `membership`; -1: no category. None with -1: every text is of some category.
        membership: float [outputs, categories].
        weights: float [examples]: how much each counts.
    """
    from scipy.optimize import minimize

    outside = labels < 0
    rows = np.arange(len(labels))
    low, high = float(scores.min()) - 2, float(scores.max()) + 1

    def loss(parameters: np.ndarray) -> float:
        scale, none = float(np.exp(parameters[0])), float(parameters[1]) if outside.any() else -np.inf
        found = probabilities(scores, scale, none, membership)
        right = np.where(outside, 1 - found.sum(axis=1), found[rows, labels])
        return float(-(weights * np.log(np.maximum(right, LEAST))).sum() / weights.sum())

    start = (np.log(15.0), float(np.median(scores.max(axis=1))) - 0.2)
    bounds = [(np.log(_SCALES[0]), np.log(_SCALES[1])), (low, high)]
    # Two numbers of very different steepness, which a simplex does not mind.
    found = minimize(loss, start, method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-3, "fatol": 1e-6})
    scale, none = float(np.exp(found.x[0])), float(found.x[1]) if outside.any() else -np.inf
    return Calibration(scale, none, float(found.fun))
