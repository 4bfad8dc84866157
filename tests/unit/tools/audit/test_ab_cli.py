"""The command `vllm-lora-router ab`."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.routing.ab_assignment import digest, rank_arms

from .conftest import at, cells, decision, feedback, outcome

if TYPE_CHECKING:
    from .conftest import Run, Write

EQUAL_WEIGHTS = {"old": 1.0, "new": 1.0}


def ab_traffic(
    count: int,
    weights: dict[str, float] = EQUAL_WEIGHTS,
    *,
    positive: dict[str, float],
    since_s: float = 0.0,
    key_source: str = "user",
) -> list[AuditLine]:
    """Return the lines of one request a minute, each of another user and with a rating of 0 or 1.

    Args:
        positive: arm -> probability of a rating of 1.
    """
    rng, lines = Random(2), list[AuditLine]()
    for n in range(count):
        id, key, at_s = f"{since_s:g}-{n}", digest("", str(n)), since_s + 60 * n
        arm = rank_arms(key, "medical", weights)[0]
        line = decision(id, at_s)
        line["plan"]["assignment"] = {
            "category": "medical",
            "key": key,
            "key_source": key_source,
            "arm": arm,
            "weights": weights,
        }
        line["served"] |= {"model": arm, "adapter": arm, "arm": arm}
        rating = feedback(float(rng.random() < positive[arm]), id, at_s + 2)
        lines += [line, outcome(id, at_s + 1), rating]
    return lines


@pytest.fixture
def folder(write: Write) -> Path:
    return write("a", *ab_traffic(400, positive={"old": 0.4, "new": 0.8}))


def test_arms_and_their_difference_are_shown(run: Run, folder: Path) -> None:
    status, output, errors = run("ab", folder)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    rows = {row[0]: row for row in map(cells, lines) if len(row) > 5}
    assert lines[0] == f"medical, {at(0)} to {at(399 * 60)}, configuration 0a1b2c3d"
    name, weight, requests, served_by_other, keys, finish, aborted, errors, times, ratings, rating_keys, mean, _ = next(
        row for row in map(cells, lines) if row[0] == "old"
    )
    assert (name, weight, served_by_other, aborted, errors, times) == (
        *("old", "1", "0", "0 (0.0%)", "0", "20.0, 20.0 ms"),
    )
    assert requests == keys == ratings == rating_keys and 150 < int(keys) < 250 and finish == f"stop {keys}"
    assert float(mean) == pytest.approx(0.4, abs=0.1)
    arm, baseline, difference, _, p, p_holm, target, needed, days = rows["new"]
    assert (arm, baseline, p, p_holm, target) == ("new", "old", "below 0.0001", "below 0.0001", "0.05")
    assert float(difference) == pytest.approx(0.4, abs=0.1) and difference.startswith("+")
    # About 1,280 users of each arm. The traffic has 200 of each in 400 minutes, so that takes 1.8 days.
    assert all(1100 < int(count.replace(",", "")) < 1500 for count in needed.split(" and "))
    assert 1.3 < float(days) < 2.3
    assert "new is better than old (p below 0.0001)." in lines
    assert any("with a probability of 0.8 at 95 % confidence, if you look at the result once" in line for line in lines)
    assert "SAMPLE RATIO MISMATCH" not in output and "weights changed" not in output


def test_report_as_json(run: Run, folder: Path) -> None:
    (report,) = json.loads(run("ab", folder, "--json", "--difference", "0.1", "--power", "0.9")[1])
    assert (report["category"], report["weights"], report["is_trusted"]) == ("medical", EQUAL_WEIGHTS, True)
    assert [arm["sample"]["keys"] == arm["ratings"] for arm in report["arms"]] == [True, True]
    assert all(arm["mean"]["low"] < arm["sample"]["mean"] < arm["mean"]["high"] for arm in report["arms"])
    (comparison,) = report["comparisons"]
    assert (comparison["arm"], comparison["target_difference"]) == ("new", 0.1)
    assert comparison["interval"]["low"] < comparison["difference"] < comparison["interval"]["high"]


def test_scores_outside_0_to_1_are_pointed_out(run: Run, write: Write) -> None:
    lines = ab_traffic(20, positive=dict.fromkeys(EQUAL_WEIGHTS, 0.5))
    folder = write("a", *lines)
    assert "the same scale" not in run("ab", folder)[1]
    lines[2]["score"] = 99.0
    folder = write("a", *lines)
    assert (
        "The scores are from 0 to 99: means can be compared only if all clients used the same" in run("ab", folder)[1]
    )


def test_missing_scipy_is_an_error_with_the_extra_to_install(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = util.find_spec
    monkeypatch.setattr(
        "vllm_lora_router.tools.options.find_spec", lambda name: None if name == "scipy" else find_spec(name)
    )
    assert run("ab", folder) == (1, "", "ab needs scipy: pip install 'vllm-lora-router[evaluate]'\n")


def test_difference_that_is_not_significant(run: Run, write: Write) -> None:
    folder = write("a", *ab_traffic(200, positive={"old": 0.5, "new": 0.5}))
    assert "new and old: no significant difference (p 0." in run("ab", folder)[1]
    folder = write("a", *ab_traffic(200, positive={"old": 1.0, "new": 1.0}))
    assert "new and old: too few ratings to compare, or all ratings are equal." in run("ab", folder)[1]


def test_changed_weights_are_evaluated_separately(run: Run, write: Write) -> None:
    positive = {"old": 0.5, "new": 0.5}
    later = ab_traffic(30, {"old": 1.0, "new": 3.0}, positive=positive, since_s=86400)
    folder = write("a", *ab_traffic(30, positive=positive), *later)
    output = run("ab", folder)[1]
    assert "The weights changed: this is part 1 of 2. Each part is evaluated separately" in output
    assert "this is part 2 of 2" in output and output.count("configuration 0a1b2c3d") == 2
    alone = run("ab", folder, "--since", at(86400))[1]
    assert "weights changed" not in alone and "medical, 2026-11-26" in alone


def test_sample_ratio_mismatch_is_reported_first(run: Run, write: Write) -> None:
    lines = ab_traffic(300, positive={"old": 0.5, "new": 0.5})
    new = [line["id"] for line in lines if line["type"] == "decision" and line["plan"]["assignment"]["arm"] == "new"]
    removed = set(sorted(new)[::2])
    folder = write("a", *(line for line in lines if line["id"] not in removed))
    output = run("ab", folder)[1]
    first = next(line for line in output.splitlines() if line.endswith("."))
    assert first.startswith("SAMPLE RATIO MISMATCH: the numbers of keys do not match the weights (old")
    assert json.loads(run("ab", folder, "--json")[1])[0]["is_trusted"] is False


def test_requests_without_a_user_and_few_keys_are_reported(run: Run, write: Write) -> None:
    traffic = ab_traffic(6, positive={"old": 0.5, "new": 0.5}, key_source="request")
    output = run("ab", write("a", *traffic))[1]
    assert "6 of 6 requests did not identify a user and were assigned separately" in output
    assert "Too few keys to test whether their numbers match the weights." in output


def test_changed_adapter_files_are_reported(run: Run, write: Write) -> None:
    lines = ab_traffic(40, positive={"old": 0.5, "new": 0.5})
    for line in lines[60:]:
        if line["type"] == "decision" and line["served"]["arm"] == "new":
            line["served"]["content_digest"] = "another"
    assert "The adapter files of new changed in this period: their versions are" in run("ab", write("a", *lines))[1]


def test_record_without_the_ab_test_is_an_error(run: Run, folder: Path, write: Write, tmp_path: Path) -> None:
    assert run("ab", folder, "--category", "medical")[0] == 0
    status, output, errors = run("ab", folder, "--category", "legal")
    assert (status, output) == (1, "")
    assert errors.startswith("no decision with an A/B test for category legal in this record")
    (folder / "a.jsonl").unlink()
    assert run("ab", write("b", decision()))[2].startswith("no decision with an A/B test in this record")
    assert run("ab", tmp_path / "missing")[0] == 1


@pytest.mark.parametrize("option", [("--difference", "0"), ("--power", "1"), ("--power", "much")])
def test_invalid_difference_or_power_is_refused(run: Run, folder: Path, option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        run("ab", folder, *option)


def test_missing_lines_are_warned_about(run: Run, write: Write) -> None:
    folder = write("a", *ab_traffic(30, positive={"old": 0.5, "new": 0.5}), '{"run"')
    status, _, errors = run("ab", folder)
    assert status == 0 and errors.startswith("warning: ")
    assert "a.jsonl:91: invalid line (truncated or changed)" in errors
