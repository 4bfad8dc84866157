"""Heads from few examples, or from descriptions alone. The closed form takes milliseconds and is deterministic."""

from dataclasses import dataclass, replace

import numpy as np

from vllm_lora_router.classifiers.heads.calibration import calibrate
from vllm_lora_router.classifiers.heads.head import Head, Kernel, probabilities
from vllm_lora_router.classifiers.heads.kernel_ridge import LabelledEmbeddings, fit_exact, leave_one_out_scores

# Chosen with all-MiniLM-L6-v2 on random draws of 8 and 20 training questions of CLINC150, by its validation split.
KERNEL = Kernel("cosine", 2.0)
PENALTY = 0.1
# Assumed share of traffic that belongs to no category.
OUT_OF_SCOPE_SHARE = 0.1
# With one text for each category, nothing can be held out. These values have the maximum likelihood over random sets of
# three to eight MMLU subjects and CLINC150 domains (validation split) of which only the names were known.
DEFAULT_SCALE, DEFAULT_NONE_SCORE = 41.0, -0.0065
MIN_HELD_OUT = 6  # examples whose category has at least one other example


@dataclass(frozen=True, eq=False)
class FewShotFit:
    """A head, and its leave-one-out predictions for its own examples."""

    head: Head
    leave_one_out: np.ndarray  # float32 [examples, categories]: probabilities from a head without the example
    calibrated: bool  # whether there were enough examples for a calibration


def fit_few_shot(data: LabelledEmbeddings, is_example: np.ndarray) -> FewShotFit:
    """Return a calibrated head from examples of at least two categories.

    The calibration uses the head's own examples: each example is left out once. If no example is out of scope, each
    category is also left out once, and its examples count as out of scope.

    Args:
        is_example: bool [texts]: True for an example of a user's question. A category's description is no example
            and is not used for the calibration.
    """
    head = fit_exact(data, KERNEL, PENALTY)
    scores = leave_one_out_scores(data, KERNEL, PENALTY)
    labels = data.labels
    inside = labels >= 0
    has_others = np.bincount(labels[inside], minlength=labels.max() + 1)[labels] > 1
    held_out = np.flatnonzero(inside & is_example & has_others)
    calibrated = len(held_out) >= MIN_HELD_OUT
    if calibrated:
        outside = scores[~inside] if not inside.all() else unseen_category_scores(data, is_example)
        weight = out_of_scope_weight(len(held_out), len(outside))
        calibration = calibrate(
            np.concatenate([scores[held_out], outside]),
            np.concatenate([labels[held_out], np.full(len(outside), -1)]),
            head.membership,
            np.concatenate([np.ones(len(held_out)), np.full(len(outside), weight)]),
        )
        head = replace(head, scale=calibration.scale, none_score=calibration.none_score)
    else:
        head = replace(head, scale=DEFAULT_SCALE, none_score=DEFAULT_NONE_SCORE)
    leave_one_out = probabilities(scores, head.scale, head.none_score, head.membership)
    return FewShotFit(head, leave_one_out.astype(np.float32), calibrated)


def unseen_category_scores(data: LabelledEmbeddings, is_example: np.ndarray) -> np.ndarray:
    """Return float32 [examples, outputs]: scores of each category's examples from a head without that category."""
    scores, labels = [], data.labels
    for category in np.unique(labels[labels >= 0]):
        of_category = labels == category
        head = fit_exact(data.subset(np.flatnonzero(~of_category)), KERNEL, PENALTY)
        scores.append(head.scores(data.vectors[of_category & is_example]))
    return np.concatenate(scores)


def out_of_scope_weight(inside: int, outside: int) -> float:
    """Return the weight of each out-of-scope example that gives them the share `OUT_OF_SCOPE_SHARE` of the total."""
    return inside * OUT_OF_SCOPE_SHARE / (1 - OUT_OF_SCOPE_SHARE) / outside
