"""Fitting a head: the one that suits is chosen, it is as sure as it may be, and what cannot be fitted is said."""

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("sklearn")

from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.fit.candidates import choose_points, ways
from vllm_lora_router.tools.fit.fit import Goal, check_enough, digest, embedded, fit

DIMENSIONS = 16


def encode(texts: Sequence[str]) -> np.ndarray:
    """Words lie where chance put them, and a text is the mean of its words."""
    rows = [
        np.sum([np.random.default_rng(list(word.encode())).normal(size=DIMENSIONS) for word in text.split()], axis=0)
        for text in texts
    ]
    found = np.array(rows)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


TOPICS = {"car": ("engine", "wheel", "brake"), "food": ("bread", "soup", "salt"), "law": ("court", "judge", "sue")}


def asked(count: int, *, seed: int = 0, intents: bool = False) -> list[Example]:
    draw = np.random.default_rng(seed)
    found = []
    for category, words in TOPICS.items():
        for number in range(count):
            word = words[number % 3]
            filler = f"w{draw.integers(40)}"
            found.append(
                Example(f"{word} {word} {filler} n{number}", category, word if intents else None, f"f:{number}")
            )
    return found


def outside(count: int) -> list[Example]:
    return [Example(f"x{number} y{number} z{number}", None) for number in range(count)]


def test_the_head_finds_the_categories_of_other_texts_and_is_as_sure_as_it_says() -> None:
    fitted = fit([*asked(30), *outside(25)], encode, "words")
    head, others = fitted.stored.head, asked(30, seed=1)
    found = head(encode([one.text for one in others]))
    guesses = [head.categories[place] for place in found.argmax(axis=1)]
    assert np.mean([guess == one.category for guess, one in zip(guesses, others, strict=True)]) >= 0.97
    assert fitted.figures.guess is not None and fitted.figures.guess.value >= 0.95
    assert fitted.figures.reliability is not None and fitted.figures.reliability.error.value < 0.1
    assert fitted.figures.out_of_scope is not None and fitted.figures.out_of_scope.auroc.value > 0.9
    assert fitted.stored.thresholds == dict.fromkeys(TOPICS, 0.5)
    assert fitted.chosen == max(fitted.tried, key=lambda one: one.accuracy).way.name
    names = {one.way.name.partition(",")[0].split()[0] for one in fitted.tried}
    assert names == {"nearest", "logistic", "cosine", "rbf"}
    assert all(0 < one.macro_f1 <= 1 for one in fitted.tried)
    # As many questions of each topic: what finds most of them has about that macro F1, too.
    assert max(one.macro_f1 for one in fitted.tried) == pytest.approx(
        max(one.accuracy for one in fitted.tried), abs=0.03
    )


def test_the_same_seed_gives_the_same_head() -> None:
    one, other = (fit(asked(12), encode, "words", seed=3).stored for _ in range(2))
    assert np.array_equal(one.head.weights, other.head.weights)
    assert (one.about, one.head.scale, one.head.none) == (other.about, other.head.scale, other.head.none)
    assert one.about["data_sha256"] == digest(asked(12)) != digest(asked(13))


def test_intents_are_outputs_of_their_own_within_their_category() -> None:
    head = fit(asked(30, intents=True), encode, "words").stored.head
    assert head.categories == tuple(TOPICS)
    assert sorted(head.names) == sorted(word for words in TOPICS.values() for word in words)


def test_thresholds_reach_the_precision_or_the_share_that_is_asked_for() -> None:
    # Half of what is asked is of words that say nothing of the category.
    vague = [Example(f"v{number} u{number} t{number}", list(TOPICS)[number % 3], None, "g") for number in range(90)]
    examples = [*asked(30), *vague]
    plain, precise, often = (
        fit(examples, encode, "words", goal=goal) for goal in (None, Goal(precision=0.98), Goal(share=0.9))
    )
    assert precise.figures.precision is not None and precise.figures.precision.value >= 0.98
    assert often.figures.coverage is not None and often.figures.coverage.value >= 0.88
    assert plain.figures.coverage is not None and plain.figures.coverage.value < 0.88
    assert not precise.unmet


def test_what_cannot_be_reached_is_said_and_the_threshold_stays() -> None:
    vague = [Example(f"v{number} u{number} t{number}", list(TOPICS)[number % 3], None, "g") for number in range(90)]
    fitted = fit(vague, encode, "words", goal=Goal(precision=0.99))
    assert fitted.unmet and all(fitted.stored.thresholds[name] == 0.5 for name in fitted.unmet)


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([Example("a", "car", None, "f:1"), Example("b", "car", None, "f:2")], r"all 2 of 'car' \(f:1, f:2, \.\.\.\)"),
        ([Example("a", None)], "these are there is none"),
        ([*asked(3), Example("x", "alone", None, "f:9")], "f:9: is the only example of 'alone'"),
    ],
)
def test_too_little_is_an_error(examples: list[Example], said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_enough(examples)


def test_of_many_examples_a_kernel_machine_keeps_centres_in_proportion() -> None:
    data = embedded([*asked(200), *outside(100)], encode)
    points = choose_points(data, 0, most=70)
    assert points is not None and len(points) == pytest.approx(70, abs=3)
    assert np.linalg.norm(points, axis=1) == pytest.approx(1, abs=1e-5)
    assert choose_points(data, 0) is None


def test_every_way_can_do_without_a_category(around_two: Labelled) -> None:
    """What is left out of a fit has a score all the same, and a low one."""
    known = around_two.at(np.flatnonzero(around_two.outputs > 0))
    for way in ways():
        scores = way.fit(known, None).scores(around_two.vectors)
        assert np.isfinite(scores).all()
        assert (scores[:, 0] <= scores[:, 1:].max(axis=1)).all(), way.name


@pytest.fixture
def around_two() -> Labelled:
    return embedded(asked(10), encode)
