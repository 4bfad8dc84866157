"""Small changes to a prompt."""

from __future__ import annotations

import pytest

from vllm_lora_router.tools.evaluate.perturbations import PERTURBATIONS, perturb

TEXT = "What's the state-of-the-art treatment, and what does it cost me?"


def test_case_changes() -> None:
    assert perturb("What is IT?", "lower case") == "what is it?"
    assert perturb("What is IT?", "upper case") == "WHAT IS IT?"


def edit_distance(first: str, second: str) -> int:
    """Return the edit distance of two texts; a swap of neighbours is one edit."""
    rows = [list(range(len(second) + 1))]
    for i, a in enumerate(first, start=1):
        row = [i]
        for j, b in enumerate(second, start=1):
            best = min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and (a, first[i - 2]) == (second[j - 2], b):
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


@pytest.mark.parametrize(("text", "most"), [("flu", 1), ("is it a fever", 1), (TEXT, 2), (TEXT * 2, 4)])
def test_there_is_about_one_typo_in_30_characters_and_at_least_one(text: str, most: int) -> None:
    mistyped = [perturb(text, "typos", seed) for seed in range(30)]
    distances = [edit_distance(text, variant) for variant in mistyped if variant is not None]
    assert distances and min(distances) >= 1 and max(distances) == most
    assert len(set(mistyped)) > 2


def test_polite_phrases_and_prefixes_are_added() -> None:
    polite = {perturb("is it a fever", "politeness", seed) for seed in range(30)}
    assert polite == {"please is it a fever", "could you tell me is it a fever", "is it a fever thanks!"}
    prefixed = {perturb("is it {a} fever", "a prefix", seed) for seed in range(30)}
    assert prefixed == {"hi, is it {a} fever", "quick question: is it {a} fever"}


def test_punctuation_is_removed_and_words_stay_separate() -> None:
    assert perturb(TEXT, "no punctuation") == "Whats the stateoftheart treatment and what does it cost me"
    assert perturb("cats,dogs", "no punctuation") == "cats dogs"
    assert perturb("什么会引起高血压？", "no punctuation") == "什么会引起高血压"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("all is lower", "lower case"),
        ("no marks", "no punctuation"),
        ("?!", "no punctuation"),
        ("什么", "upper case"),
        ("a 1 2", "typos"),
    ],
)
def test_unchanged_or_empty_result_is_none(text: str, kind: str) -> None:
    assert perturb(text, kind) is None


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_perturbation_depends_only_on_text_kind_and_seed(kind: str) -> None:
    first = perturb(TEXT, kind, 7)
    for text in ("other", "texts"):
        perturb(text, kind, 7)
    assert perturb(TEXT, kind, 7) == first != TEXT
