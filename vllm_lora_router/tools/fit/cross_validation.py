"""Which head suits the examples: each is judged by examples that it did not see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled
from vllm_lora_router.tools.fit.candidates import Way, choose_points

MANY = 4000  # examples: three folds tell as much as five then
STRANGERS = 2000  # examples at most that a head without a category is fitted on
GROUPS = 8  # of categories at most that are left out one after the other

Told = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a way's heads say of the examples that each did not see."""

    way: Way
    scores: np.ndarray  # float32 [examples, outputs]
    accuracy: float  # of the best guess, over the examples in scope
    macro_f1: float  # of the same


def held_out(data: Labelled, ways: Sequence[Way], seed: int, told: Told) -> list[HeldOut]:
    """Of all ways, by stratified cross-validation in the same folds."""
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedKFold

    labels = data.labels
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    folds = min(3 if len(data) > MANY else 5, max(smallest, 2))
    scores = [np.zeros((len(data), len(data.names)), np.float32) for _ in ways]
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(data.vectors, labels))
    done, of = 0, len(splits) * len(ways)
    for train, test in splits:
        seen = data.at(train)
        points = choose_points(seen, seed)
        for way, own in zip(ways, scores, strict=True):
            own[test] = way.fit(seen, points).scores(data.vectors[test])
            done += 1
            told("trying heads", done, of)
    inside = labels >= 0
    of_output = data.membership.argmax(axis=1)
    found = []
    for way, own in zip(ways, scores, strict=True):
        guessed = of_output[own[inside].argmax(axis=1)]
        accuracy = float((guessed == labels[inside]).mean())
        found.append(HeldOut(way, own, accuracy, float(f1_score(labels[inside], guessed, average="macro"))))
    return found


def best(found: Sequence[HeldOut]) -> HeldOut:
    """The most accurate; of equals the first."""
    return max(found, key=lambda one: one.accuracy)


def strangers(data: Labelled, way: Way, seed: int, told: Told) -> np.ndarray:
    """float32 [examples, outputs]: of examples that are in no category that their head knows.

    The categories are left out in turn, in a few groups where there are many.
    """
    some = data.at(np.sort(np.random.default_rng(seed).permutation(len(data))[:STRANGERS]))
    labels = some.labels
    categories = np.unique(labels[labels >= 0])
    groups = np.array_split(categories, min(len(categories), GROUPS))
    found = []
    for place, group in enumerate(groups):
        out = np.isin(labels, group)
        if len(np.unique(labels[~out])) > 1:
            known = some.at(np.flatnonzero(~out))
            found.append(way.fit(known, choose_points(known, seed)).scores(some.vectors[out]))
        told("leaving categories out", place + 1, len(groups))
    return np.concatenate(found) if found else np.zeros((0, len(data.names)), np.float32)
