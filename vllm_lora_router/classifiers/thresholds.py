"""Selection of a category from scores, shared by the classifiers and by the tools that explain recorded decisions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SCORE_DIGITS = 4  # scores are rounded before the decision, so that the reported scores explain it


@dataclass(frozen=True, slots=True)
class SelectedCategory:
    """The best category of a classification."""

    category: str
    score: float
    threshold: float
    accepted: bool


def select_category(scores: Mapping[str, float], thresholds: Mapping[str, float]) -> SelectedCategory:
    """Return the best category that reaches its threshold, or the best category of all, which is not accepted.

    Of equal scores the first one wins.
    """
    category = max(scores, key=lambda name: (scores[name] >= thresholds[name], scores[name]))
    accepted = scores[category] >= thresholds[category]
    return SelectedCategory(category, scores[category], thresholds[category], accepted)


def best_by_category(rows: Iterable[tuple[str, float, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores and the thresholds by category.

    A category can occur several times. The returned pair is the one that `select_category` would prefer.

    Args:
        rows: Tuples of category, score and threshold.
    """
    scores: dict[str, float] = {}
    thresholds: dict[str, float] = {}
    for category, value, threshold in rows:
        score = round(value, SCORE_DIGITS)
        if category not in scores or (score >= threshold, score) > (
            scores[category] >= thresholds[category],
            scores[category],
        ):
            scores[category], thresholds[category] = score, threshold
    return scores, thresholds
