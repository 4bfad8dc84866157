"""Calibration: the scale and the score of no category that turn the scores of held-out examples into probabilities."""

from dataclasses import dataclass

import numpy as np

from vllm_lora_router.classifiers.heads.head import probabilities

MIN_PROBABILITY = 1e-12
_SCALES = (0.05, 200.0)


@dataclass(frozen=True)
class Calibration:
    """The calibrated parameters of a `Head`."""

    scale: float
    none_score: float
    loss: float  # mean negative log-likelihood of the held-out labels, in nats


def calibrate(scores: np.ndarray, labels: np.ndarray, membership: np.ndarray, weights: np.ndarray) -> Calibration:
    """Return the scale and the score of no category with the maximum likelihood.

    A scale alone is temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Args:
        scores: float [examples, outputs], from a head that was not fitted on the example.
        labels: int [examples]: a column of `membership`, or -1 for no category. Without any -1, every text is assumed
            to belong to a category.
        membership: float [outputs, categories].
        weights: float [examples].
    """
    from scipy.optimize import minimize

    outside = labels < 0
    rows = np.arange(len(labels))
    low, high = float(scores.min()) - 2, float(scores.max()) + 1

    def loss(parameters: np.ndarray) -> float:
        scale, none_score = float(np.exp(parameters[0])), float(parameters[1]) if outside.any() else -np.inf
        predicted = probabilities(scores, scale, none_score, membership)
        likelihood = np.where(outside, 1 - predicted.sum(axis=1), predicted[rows, labels])
        return float(-(weights * np.log(np.maximum(likelihood, MIN_PROBABILITY))).sum() / weights.sum())

    start = (np.log(15.0), float(np.median(scores.max(axis=1))) - 0.2)
    bounds = [(np.log(_SCALES[0]), np.log(_SCALES[1])), (low, high)]
    # Nelder-Mead, because the two parameters have very different gradients.
    result = minimize(loss, start, method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-3, "fatol": 1e-6})
    scale, none_score = float(np.exp(result.x[0])), float(result.x[1]) if outside.any() else -np.inf
    return Calibration(scale, none_score, float(result.fun))
