"""How sure logits may be: one temperature, and how far the probabilities are from what they say."""

from typing import Any

import numpy as np

BINS = 15
_TEMPERATURES = (0.05, 20.0)


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What logits are to be divided by, so that the labels are most likely.

    Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Args:
        logits: float [examples, categories], of a model that did not see the example.
        labels: int [examples].
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))
        return -float(np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())

    low, high = np.log(_TEMPERATURES)
    found: Any = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return float(np.exp(found.x))


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error, 0 to 1, of the likeliest categories in 15 bins of equal width.

    Args:
        logits: float [examples, categories].
        labels: int [examples].
    """
    probabilities = softmax(logits)
    likeliest = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels).astype(float)
    bins = np.minimum((likeliest * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, weights=right - likeliest, minlength=BINS)).sum() / len(labels))


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [examples, categories]: rows that sum to 1."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
