"""From scores to a category: written once, for those who decide and for those who explain it later."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DIGITS = 4  # what is shown is what was decided on


@dataclass(frozen=True, slots=True)
class Chosen:
    """The best category."""

    category: str
    score: float
    threshold: float
    sure: bool


def choose(scores: Mapping[str, float], thresholds: Mapping[str, float]) -> Chosen:
    """The best of the categories that reach their threshold, else the best of all, unsure; of equals the first."""
    category = max(scores, key=lambda name: (scores[name] >= thresholds[name], scores[name]))
    return Chosen(category, scores[category], thresholds[category], scores[category] >= thresholds[category])


def by_category(found: Iterable[tuple[str, float, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Scores and thresholds by category, of (category, score, threshold): for each the one that `choose` would take."""
    scores: dict[str, float] = {}
    thresholds: dict[str, float] = {}
    for category, value, threshold in found:
        score = round(value, DIGITS)
        if category not in scores or (score >= threshold, score) > (
            scores[category] >= thresholds[category],
            scores[category],
        ):
            scores[category], thresholds[category] = score, threshold
    return scores, thresholds
