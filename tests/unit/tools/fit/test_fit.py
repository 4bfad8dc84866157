"""Fitting of a head: selection, calibration and thresholds."""

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("sklearn")

from vllm_lora_router.classifiers.heads.kernel_ridge import LabelledEmbeddings
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.fit.candidates import choose_points, head_candidates
from vllm_lora_router.tools.fit.fit import ThresholdGoal, check_enough, data_digest, embed_labelled, fit

DIMENSIONS = 16


def encode(texts: Sequence[str]) -> np.ndarray:
    """Return the mean of the random vectors of a text's words."""
    rows = [
        np.sum([np.random.default_rng(list(word.encode())).normal(size=DIMENSIONS) for word in text.split()], axis=0)
        for text in texts
    ]
    vectors = np.array(rows)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


TOPICS = {"car": ("engine", "wheel", "brake"), "food": ("bread", "soup", "salt"), "law": ("court", "judge", "sue")}


def examples_of(count: int, *, seed: int = 0, intents: bool = False) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for category, words in TOPICS.items():
        for number in range(count):
            word = words[number % 3]
            filler = f"w{rng.integers(40)}"
            examples.append(
                Example(f"{word} {word} {filler} n{number}", category, word if intents else None, f"f:{number}")
            )
    return examples


def out_of_scope(count: int) -> list[Example]:
    return [Example(f"x{number} y{number} z{number}", None) for number in range(count)]


def test_head_is_accurate_and_calibrated_on_other_texts() -> None:
    result = fit([*examples_of(30), *out_of_scope(25)], encode, "words")
    head, others = result.stored.head, examples_of(30, seed=1)
    predictions = head(encode([example.text for example in others])).argmax(axis=1)
    correct = [head.categories[index] == example.category for index, example in zip(predictions, others, strict=True)]
    assert np.mean(correct) >= 0.97
    assert result.metrics.best_guess is not None and result.metrics.best_guess.value >= 0.95
    assert result.metrics.reliability is not None and result.metrics.reliability.error.value < 0.1
    assert result.metrics.detection is not None and result.metrics.detection.auroc.value > 0.9
    assert result.stored.thresholds == dict.fromkeys(TOPICS, 0.5)
    accuracies = {validation.candidate.name: validation.accuracy for validation in result.candidates}
    assert result.chosen == max(accuracies, key=accuracies.__getitem__)
    kinds = {name.partition(",")[0].split()[0] for name in accuracies}
    assert kinds == {"nearest", "logistic", "cosine", "rbf"}
    macro_f1 = [validation.macro_f1 for validation in result.candidates]
    assert all(0 < value <= 1 for value in macro_f1)
    # All topics have the same number of examples, so accuracy and macro F1 are similar.
    assert max(macro_f1) == pytest.approx(max(accuracies.values()), abs=0.03)


def test_same_seed_gives_the_same_head() -> None:
    first, second = (fit(examples_of(12), encode, "words", seed=3).stored for _ in range(2))
    assert np.array_equal(first.head.weights, second.head.weights)
    assert (first.metadata, first.head.scale) == (second.metadata, second.head.scale)
    assert first.head.none_score == second.head.none_score
    assert first.metadata["data_sha256"] == data_digest(examples_of(12)) != data_digest(examples_of(13))


def test_intents_are_outputs_of_their_category() -> None:
    head = fit(examples_of(30, intents=True), encode, "words").stored.head
    assert head.categories == tuple(TOPICS)
    assert sorted(head.names) == sorted(word for words in TOPICS.values() for word in words)


def test_thresholds_reach_the_requested_precision_or_share() -> None:
    # Half of the examples have words that are unrelated to their category.
    vague = [Example(f"v{number} u{number} t{number}", list(TOPICS)[number % 3], None, "g") for number in range(90)]
    examples = [*examples_of(30), *vague]
    goals = (None, ThresholdGoal(precision=0.98), ThresholdGoal(share=0.9))
    default, precise, frequent = (fit(examples, encode, "words", goal=goal) for goal in goals)
    assert precise.metrics.precision is not None and precise.metrics.precision.value >= 0.98
    assert frequent.metrics.coverage is not None and frequent.metrics.coverage.value >= 0.88
    assert default.metrics.coverage is not None and default.metrics.coverage.value < 0.88
    assert not precise.unreached


def test_unreachable_goal_is_reported_and_the_threshold_stays() -> None:
    vague = [Example(f"v{number} u{number} t{number}", list(TOPICS)[number % 3], None, "g") for number in range(90)]
    result = fit(vague, encode, "words", goal=ThresholdGoal(precision=0.99))
    assert result.unreached and all(result.stored.thresholds[name] == 0.5 for name in result.unreached)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (
            [Example("a", "car", None, "f:1"), Example("b", "car", None, "f:2")],
            r"all 2 are of 'car' \(f:1, f:2, \.\.\.\)",
        ),
        ([Example("a", None)], "but there are none"),
        ([*examples_of(3), Example("x", "alone", None, "f:9")], "f:9: is the only example of 'alone'"),
    ],
)
def test_too_few_examples_are_an_error(examples: list[Example], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_enough(examples)


def test_kernel_points_of_many_examples_are_centres_in_proportion() -> None:
    data = embed_labelled([*examples_of(200), *out_of_scope(100)], encode)
    points = choose_points(data, 0, most=70)
    assert points is not None and len(points) == pytest.approx(70, abs=3)
    assert np.linalg.norm(points, axis=1) == pytest.approx(1, abs=1e-5)
    assert choose_points(data, 0) is None


def test_every_candidate_gives_a_low_score_to_categories_without_examples(embeddings: LabelledEmbeddings) -> None:
    without_first = embeddings.subset(np.flatnonzero(embeddings.outputs > 0))
    for candidate in head_candidates():
        scores = candidate.fit(without_first, None).scores(embeddings.vectors)
        assert np.isfinite(scores).all()
        assert (scores[:, 0] <= scores[:, 1:].max(axis=1)).all(), candidate.name


@pytest.fixture
def embeddings() -> LabelledEmbeddings:
    return embed_labelled(examples_of(10), encode)
