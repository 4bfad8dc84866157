"""Training and check questions of the demo's domain model are disjoint and complete."""

from __future__ import annotations

from collections import Counter

from vllm_lora_router.tools.demo.held_out import HELD_OUT, MUST_PASS
from vllm_lora_router.tools.demo.questions import LABELS, QUESTIONS

MMLU_PRO = (
    *("biology", "business", "chemistry", "computer science", "economics", "engineering", "health"),
    *("history", "law", "math", "other", "philosophy", "physics", "psychology"),
)


def _plain(question: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in question.lower()).split())


TRAINING = Counter(_plain(question) for questions in QUESTIONS.values() for question in questions)
CHECKED = Counter(_plain(question) for questions in HELD_OUT.values() for question in questions)


def test_labels_are_the_mmlu_pro_subjects_in_order() -> None:
    assert LABELS == MMLU_PRO


def test_every_label_has_at_least_25_training_questions() -> None:
    assert {label: len(questions) for label, questions in QUESTIONS.items() if len(questions) < 25} == {}


def test_training_questions_are_unique_across_labels() -> None:
    assert [question for question, times in TRAINING.items() if times > 1] == []


def test_check_covers_every_label_with_questions_not_used_for_training() -> None:
    assert set(HELD_OUT) == set(LABELS)
    assert [question for question, times in CHECKED.items() if times > 1] == []
    assert TRAINING.keys() & CHECKED.keys() == set()


def test_documented_questions_are_checked_and_never_used_for_training() -> None:
    documented = {expected.question for expected in MUST_PASS}
    assert {"Explain async/await in JavaScript", "What causes high blood pressure?"} <= documented
    assert {_plain(question) for question in documented} & TRAINING.keys() == set()
    assert all(expected.labels <= set(LABELS) for expected in MUST_PASS)
