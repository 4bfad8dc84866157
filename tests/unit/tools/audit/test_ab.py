"""`vllm-lora-router ab`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.routing.ab_assignment import digest, order

from .conftest import at, decision, feedback, outcome

if TYPE_CHECKING:
    from .conftest import Run, Write

Line = dict[str, Any]
EQUAL = {"old": 1.0, "new": 1.0}


def traffic(
    count: int, weights: dict[str, float] = EQUAL, *, yes: dict[str, float], since_s: float = 0.0, by: str = "user"
) -> list[Line]:
    """Requests of as many users, one a minute, each with its rating."""
    chance, decisions, rest = Random(2), list[Line](), list[Line]()
    for n in range(count):
        id, key = f"{since_s:g}-{n}", digest("", str(n))
        arm = order(key, "medical", weights)[0]
        line = decision(id, since_s + 60 * n)
        line["plan"]["draw"] = {"category": "medical", "key": key, "by": by, "arm": arm, "weights": weights}
        line["served"] |= {"model": arm, "adapter": arm, "arm": arm}
        decisions.append(line)
        rest.append(outcome(id, since_s + 60 * n + 1))
        rest.append(feedback(float(chance.random() < yes[arm]), id, since_s + 60 * n + 2))
    return sorted(decisions + rest, key=lambda line: line["at"])


@pytest.fixture
def folder(write: Write) -> Path:
    return write("a", *traffic(400, yes={"old": 0.4, "new": 0.8}))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]


def test_arms_are_shown_with_what_can_be_said_of_their_difference(run: Run, folder: Path) -> None:
    status, printed, errors = run("ab", folder)
    assert (status, errors) == (0, "")
    lines = printed.splitlines()
    rows = {row[0]: row for row in map(cells, lines) if len(row) > 5}
    assert lines[0] == f"medical, {at(0)} to {at(399 * 60)}, configuration 0a1b2c3d"
    name, weight, requests, otherwise, keys, finish, aborted, errors, times, ratings, rating, mean, _ = next(
        row for row in map(cells, lines) if row[0] == "old"
    )
    assert (name, weight, otherwise, aborted, errors, times) == ("old", "1", "0", "0 (0.0%)", "0", "20.0, 20.0 ms")
    assert requests == keys == ratings == rating and 150 < int(keys) < 250 and finish == f"stop {keys}"
    assert float(mean) == pytest.approx(0.4, abs=0.1)
    arm, against, difference, _, p, p_holm, sought, needed, days = rows["new"]
    assert (arm, against, p, p_holm, sought) == ("new", "old", "below 0.0001", "below 0.0001", "0.05")
    assert float(difference) == pytest.approx(0.4, abs=0.1) and difference.startswith("+")
    # About 1,280 users of each arm, which 200 of each in 400 minutes bring in 1.8 days.
    assert all(1100 < int(count.replace(",", "")) < 1500 for count in needed.split(" and "))
    assert 1.3 < float(days) < 2.3
    assert "new is better than old (p below 0.0001)." in lines
    assert any("with a probability of 0.8, at 95 % confidence, looked at once" in line for line in lines)
    assert "NOT TO BE TRUSTED" not in printed and "weights changed" not in printed


def test_the_same_as_json_is_nothing_but_json(run: Run, folder: Path) -> None:
    (found,) = json.loads(run("ab", folder, "--json", "--difference", "0.1", "--power", "0.9")[1])
    assert (found["category"], found["weights"], found["is_trusted"]) == ("medical", EQUAL, True)
    assert [arm["sample"]["keys"] == arm["ratings"] for arm in found["arms"]] == [True, True]
    (compared,) = found["comparisons"]
    assert (compared["arm"], compared["sought"]) == ("new", 0.1)
    assert compared["interval"]["low"] < compared["difference"] < compared["interval"]["high"]


def test_a_difference_that_is_not_shown_is_called_so(run: Run, write: Write) -> None:
    folder = write("a", *traffic(200, yes={"old": 0.5, "new": 0.5}))
    assert "new and old: no difference is shown (p 0." in run("ab", folder)[1]
    folder = write("a", *traffic(200, yes={"old": 1.0, "new": 1.0}))
    assert "new against old: too little feedback to compare, or all of it the same." in run("ab", folder)[1]


def test_where_weights_changed_each_part_is_shown_by_itself(run: Run, write: Write) -> None:
    yes = {"old": 0.5, "new": 0.5}
    later = traffic(30, {"old": 1.0, "new": 3.0}, yes=yes, since_s=86400)
    folder = write("a", *traffic(30, yes=yes), *later)
    printed = run("ab", folder)[1]
    assert "The weights changed: this is part 1 of 2, by itself. Some users changed arms." in printed
    assert "this is part 2 of 2" in printed and printed.count("configuration 0a1b2c3d") == 2
    alone = run("ab", folder, "--since", at(86400))[1]
    assert "weights changed" not in alone and "medical, 2026-11-26" in alone


def test_what_is_not_to_be_trusted_is_called_so(run: Run, write: Write) -> None:
    lines = traffic(300, yes={"old": 0.5, "new": 0.5})
    kept = {line["id"] for line in lines if line["type"] == "decision" and line["plan"]["draw"]["arm"] == "new"}
    kept = {id for n, id in enumerate(sorted(kept)) if n % 2}
    gone = {line["id"] for line in lines if line["type"] == "decision" and line["plan"]["draw"]["arm"] == "new"} - kept
    folder = write("a", *(line for line in lines if line["id"] not in gone))
    printed = run("ab", folder)[1]
    first = next(line for line in printed.splitlines() if line.endswith("."))
    assert first.startswith("NOT TO BE TRUSTED: keys did not fall on the arms by their weights (old")
    assert json.loads(run("ab", folder, "--json")[1])[0]["is_trusted"] is False


def test_users_who_cannot_be_told_apart_and_few_keys_are_told_of(run: Run, write: Write) -> None:
    printed = run("ab", write("a", *traffic(6, yes={"old": 0.5, "new": 0.5}, by="request")))[1]
    assert "6 of 6 requests named nobody and were drawn each by itself" in printed
    assert "Too few keys to tell whether they fell on the arms by their weights." in printed


def test_a_content_that_changed_is_told_of(run: Run, write: Write) -> None:
    lines = traffic(40, yes={"old": 0.5, "new": 0.5})
    for line in lines[60:]:
        if line["type"] == "decision" and line["served"]["arm"] == "new":
            line["served"]["digest"] = "another"
    assert "In this time the content changed of new: several versions are counted" in run("ab", write("a", *lines))[1]


def test_a_record_without_the_test_asked_for_is_told(run: Run, folder: Path, write: Write, tmp_path: Path) -> None:
    assert run("ab", folder, "--category", "medical")[0] == 0
    status, printed, errors = run("ab", folder, "--category", "legal")
    assert (status, printed) == (1, "") and errors.startswith("no A/B decision of legal here")
    (folder / "a.jsonl").unlink()
    assert run("ab", write("b", decision()))[2].startswith("no decision of an A/B test here")
    assert run("ab", tmp_path / "nowhere")[0] == 1


@pytest.mark.parametrize("option", [("--difference", "0"), ("--power", "1"), ("--power", "much")])
def test_a_difference_or_a_power_that_is_none_is_refused(run: Run, folder: Path, option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        run("ab", folder, *option)


def test_lines_that_are_missing_are_warned_of(run: Run, write: Write) -> None:
    folder = write("a", *traffic(30, yes={"old": 0.5, "new": 0.5}), '{"run"')
    status, _, errors = run("ab", folder)
    assert status == 0 and errors.startswith("warning: ") and "a.jsonl:91: not a line of the record" in errors
