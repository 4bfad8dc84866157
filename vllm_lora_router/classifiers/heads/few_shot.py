"""A head from few examples, or from descriptions alone, in closed form: milliseconds, and the same in every process."""

from dataclasses import dataclass, replace

import numpy as np

from vllm_lora_router.classifiers.heads.calibration import calibrate
from vllm_lora_router.classifiers.heads.head import Head, probabilities
from vllm_lora_router.classifiers.heads.kernel import Kernel
from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled, fit_exact, left_out_scores

# Chosen with all-MiniLM-L6-v2 on random draws of 8 and 20 of CLINC150's training questions, by its validation split.
KERNEL = Kernel("cosine", 2.0)
PENALTY = 0.1
# What a question is taken to be out of all categories with, before anything is known of it.
OUTSIDE = 0.1
# Of one text a category nothing can be held out. These are the most likely over random sets of three to eight of MMLU's
# subjects and CLINC150's domains (validation split) of which only the names were known.
SCALE_UNSEEN, NONE_UNSEEN = 41.0, -0.0065
LEAST_HELD_OUT = 6  # examples whose category has another one


@dataclass(frozen=True, eq=False)
class Few:
    """A head, and what it would say of each of its examples had it not seen it."""

    head: Head
    left_out: np.ndarray  # float32 [examples, categories]: probabilities
    calibrated: bool  # by these examples; False: there were too few


def fit_few(data: Labelled, asked: np.ndarray) -> Few:
    """A calibrated head from examples of at least two categories.

    How sure it may be follows from its own examples: each is left out once, and where none of them is out of scope,
    each category once, whose examples then are of no category.

    Args:
        asked: bool [examples]: what people ask, by which it is calibrated; a category's description is not.
    """
    head = fit_exact(data, KERNEL, PENALTY)
    scores = left_out_scores(data, KERNEL, PENALTY)
    labels = data.labels
    inside = labels >= 0
    several = np.bincount(labels[inside], minlength=labels.max() + 1)[labels] > 1
    again = np.flatnonzero(inside & asked & several)
    calibrated = len(again) >= LEAST_HELD_OUT
    if calibrated:
        outside = scores[~inside] if not inside.all() else strangers(data, asked)
        found = calibrate(
            np.concatenate([scores[again], outside]),
            np.concatenate([labels[again], np.full(len(outside), -1)]),
            head.membership,
            np.concatenate([np.ones(len(again)), np.full(len(outside), outside_weight(len(again), len(outside)))]),
        )
        head = replace(head, scale=found.scale, none=found.none)
    else:
        head = replace(head, scale=SCALE_UNSEEN, none=NONE_UNSEEN)
    left_out = probabilities(scores, head.scale, head.none, head.membership)
    return Few(head, left_out.astype(np.float32), calibrated)


def strangers(data: Labelled, asked: np.ndarray) -> np.ndarray:
    """float32 [examples, outputs]: scores of what is asked of each category by a head that knows only the others."""
    found, labels = [], data.labels
    for category in np.unique(labels[labels >= 0]):
        own = labels == category
        known = fit_exact(data.at(np.flatnonzero(~own)), KERNEL, PENALTY)
        found.append(known.scores(data.vectors[own & asked]))
    return np.concatenate(found)


def outside_weight(inside: int, outside: int) -> float:
    """What each outsider counts, so that together they are the share of the traffic that is taken to be outside."""
    return inside * OUTSIDE / (1 - OUTSIDE) / outside
