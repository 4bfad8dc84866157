"""Small changes to a prompt."""

from __future__ import annotations

import pytest

from vllm_lora_router.tools.evaluate.perturbations import CHANGES, changed

TEXT = "What's the state-of-the-art treatment, and what does it cost me?"


def test_case_changes() -> None:
    assert changed("What is IT?", "lower case") == "what is it?"
    assert changed("What is IT?", "upper case") == "WHAT IS IT?"


def distance(one: str, other: str) -> int:
    """The edits between two texts, a swap of neighbours being one."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, start=1):
        row = [i]
        for j, b in enumerate(other, start=1):
            best = min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and (a, one[i - 2]) == (other[j - 2], b):
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


@pytest.mark.parametrize(("text", "most"), [("flu", 1), ("is it a fever", 1), (TEXT, 2), (TEXT * 2, 4)])
def test_typos_are_about_one_in_thirty_characters_and_at_least_one(text: str, most: int) -> None:
    found = [changed(text, "typos", seed) for seed in range(30)]
    slips = [distance(text, one) for one in found if one is not None]
    assert slips and min(slips) >= 1 and max(slips) == most
    assert len(set(found)) > 2


def test_politeness_and_prefixes_stand_around_the_prompt() -> None:
    polite = {changed("is it a fever", "politeness", seed) for seed in range(30)}
    assert polite == {"please is it a fever", "could you tell me is it a fever", "is it a fever thanks!"}
    begun = {changed("is it {a} fever", "a prefix", seed) for seed in range(30)}
    assert begun == {"hi, is it {a} fever", "quick question: is it {a} fever"}


def test_punctuation_is_dropped_and_words_stay_apart() -> None:
    assert changed(TEXT, "no punctuation") == "Whats the stateoftheart treatment and what does it cost me"
    assert changed("cats,dogs", "no punctuation") == "cats dogs"
    assert changed("什么会引起高血压？", "no punctuation") == "什么会引起高血压"


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
def test_a_change_that_changes_nothing_or_leaves_nothing_is_none(text: str, kind: str) -> None:
    assert changed(text, kind) is None


@pytest.mark.parametrize("kind", CHANGES)
def test_the_same_seed_changes_a_text_in_the_same_way_whatever_was_changed_before(kind: str) -> None:
    alone = changed(TEXT, kind, 7)
    for text in ("other", "texts"):
        changed(text, kind, 7)
    assert changed(TEXT, kind, 7) == alone != TEXT
