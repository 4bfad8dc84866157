"""Selection of a head by cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.classifiers.heads.kernel_ridge import LabelledEmbeddings
from vllm_lora_router.tools.fit.candidates import HeadCandidate, choose_points
from vllm_lora_router.tools.progress import ReportProgress

MANY_EXAMPLES = 4000  # with more examples, three folds suffice instead of five
MAX_UNSEEN_EXAMPLES = 2000  # examples that heads without a category are fitted on
MAX_GROUPS = 8  # of categories that are left out together


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """A candidate's predictions for held-out examples."""

    candidate: HeadCandidate
    scores: np.ndarray  # of each example by a head that was not fitted on it, float32 [examples, outputs]
    accuracy: float  # of the best category, over in-scope examples
    macro_f1: float  # likewise


def cross_validate(
    data: LabelledEmbeddings, candidates: Sequence[HeadCandidate], seed: int, report_progress: ReportProgress
) -> list[CrossValidation]:
    """Cross-validate all candidates on the same stratified folds."""
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedKFold

    labels = data.labels
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    folds = min(3 if len(data) > MANY_EXAMPLES else 5, max(smallest, 2))
    all_scores = [np.zeros((len(data), len(data.names)), np.float32) for _ in candidates]
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(data.vectors, labels))
    done, total = 0, len(splits) * len(candidates)
    for train, test in splits:
        train_data = data.subset(train)
        points = choose_points(train_data, seed)
        for candidate, scores in zip(candidates, all_scores, strict=True):
            scores[test] = candidate.fit(train_data, points).scores(data.vectors[test])
            done += 1
            report_progress("cross-validation", done, total)
    inside = labels >= 0
    category_of = data.membership.argmax(axis=1)
    results = []
    for candidate, scores in zip(candidates, all_scores, strict=True):
        predictions = category_of[scores[inside].argmax(axis=1)]
        accuracy = float((predictions == labels[inside]).mean())
        macro_f1 = float(f1_score(labels[inside], predictions, average="macro"))
        results.append(CrossValidation(candidate, scores, accuracy, macro_f1))
    return results


def most_accurate(results: Sequence[CrossValidation]) -> CrossValidation:
    """Return the most accurate result; the first one wins a tie."""
    return max(results, key=lambda result: result.accuracy)


def scores_of_unseen_categories(
    data: LabelledEmbeddings, candidate: HeadCandidate, seed: int, report_progress: ReportProgress
) -> np.ndarray:
    """Return the scores of examples by heads that were fitted without their category, float32 [examples, outputs].

    Each category is left out once; many categories are left out in groups.
    """
    sampled = data.subset(np.sort(np.random.default_rng(seed).permutation(len(data))[:MAX_UNSEEN_EXAMPLES]))
    labels = sampled.labels
    categories = np.unique(labels[labels >= 0])
    groups = np.array_split(categories, min(len(categories), MAX_GROUPS))
    scores = []
    for index, group in enumerate(groups):
        left_out = np.isin(labels, group)
        if len(np.unique(labels[~left_out])) > 1:
            remaining = sampled.subset(np.flatnonzero(~left_out))
            head = candidate.fit(remaining, choose_points(remaining, seed))
            scores.append(head.scores(sampled.vectors[left_out]))
        report_progress("leaving categories out", index + 1, len(groups))
    return np.concatenate(scores) if scores else np.zeros((0, len(data.names)), np.float32)
