"""Public data as files to fit and evaluate with, and draws of a few of their examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.head_source import head_source
from vllm_lora_router.tools.bench.datasets import clinc150, exemplars, main, write_config
from vllm_lora_router.tools.bench.few import drawn
from vllm_lora_router.tools.data.examples import Example, read_examples

INTENTS = {"banking": ["balance", "transfer"], "travel": ["book_flight"]}
DATA = {
    **{split: [[f"{split} b", "balance"], [f"{split} f", "book_flight"]] for split in ("train", "val", "test")},
    "oos_train": [["what", "oos"]],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "domains.json").write_text(json.dumps(INTENTS))
    (tmp_path / "data_full.json").write_text(json.dumps(DATA))
    labels = {"law": {"exemplars": ["May I?", "Must I?"]}, "math": {"exemplars": ["1 + 1"]}}
    (tmp_path / "labels.json").write_text(json.dumps({"labels": labels}))
    return tmp_path


def test_a_question_has_its_domain_and_its_intent_or_is_out_of_scope(data: Path) -> None:
    assert clinc150(data, "train") == [
        Example("train b", "banking", "balance"),
        Example("train f", "travel", "book_flight"),
        Example("what", None),
    ]
    assert exemplars(data) == [Example("May I?", "law"), Example("Must I?", "law"), Example("1 + 1", "math")]


def test_what_is_written_can_be_read_and_its_configurations_load(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["datasets", "clinc150", str(data), str(tmp_path / "d")])
    assert main() == 0
    read = read_examples([tmp_path / "d" / "train-intents.jsonl"], ["banking", "travel"]).examples
    assert [(one.text, one.category, one.intent) for one in read] == [
        (one.text, one.category, one.intent) for one in clinc150(data, "train")
    ]
    assert [one.intent for one in read_examples([tmp_path / "d" / "train.jsonl"]).examples] == [None, None, None]
    assert head_source(load(tmp_path / "d" / "unfitted.yaml").config) is None
    assert load(tmp_path / "d" / "fitted.yaml").config.classifier.embedding_model.head == "head"


def test_a_configuration_has_the_categories_it_is_given(tmp_path: Path) -> None:
    write_config(tmp_path / "c.yaml", ["a", "b"])
    assert [one.name for one in load(tmp_path / "c.yaml").config.categories] == ["a", "b"]


def test_draws_are_the_same_for_a_seed_and_cover_intents_where_asked() -> None:
    examples = [Example(f"{number}", "a", f"i{number % 5}") for number in range(50)]
    examples += [Example(f"b{number}", "b", "only") for number in range(50)]
    one = drawn(examples, 5, 1, cover=True)
    assert one == drawn(examples, 5, 1, cover=True) != drawn(examples, 5, 2, cover=True)
    assert {examples[place].intent for place in one if examples[place].category == "a"} == {f"i{n}" for n in range(5)}
    assert sum(examples[place].category == "b" for place in one) == 5
    by_chance = [drawn(examples, 5, seed, cover=False) for seed in range(10)]
    assert min(len({examples[place].intent for place in draw[:5]}) for draw in by_chance) < 5
