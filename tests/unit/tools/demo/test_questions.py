"""What the demo's domain model is taught and what it is checked with are two things."""

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


TAUGHT = Counter(_plain(question) for questions in QUESTIONS.values() for question in questions)
ASKED = Counter(_plain(question) for questions in HELD_OUT.values() for question in questions)


def test_the_labels_are_the_subjects_of_mmlu_pro_in_their_order() -> None:
    assert LABELS == MMLU_PRO


def test_every_label_has_enough_questions_to_be_learnt() -> None:
    assert {label: len(questions) for label, questions in QUESTIONS.items() if len(questions) < 25} == {}


def test_no_question_stands_twice_or_under_two_labels() -> None:
    assert [question for question, times in TAUGHT.items() if times > 1] == []


def test_the_model_is_checked_with_every_label_and_with_questions_it_has_not_seen() -> None:
    assert set(HELD_OUT) == set(LABELS)
    assert [question for question, times in ASKED.items() if times > 1] == []
    assert TAUGHT.keys() & ASKED.keys() == set()


def test_what_the_documentation_shows_is_promised_but_never_taught() -> None:
    promised = {expected.question for expected in MUST_PASS}
    assert {"Explain async/await in JavaScript", "What causes high blood pressure?"} <= promised
    assert {_plain(question) for question in promised} & TAUGHT.keys() == set()
    assert all(expected.labels <= set(LABELS) for expected in MUST_PASS)
