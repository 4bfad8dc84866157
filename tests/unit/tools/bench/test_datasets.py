"""Conversion of public data sets, and draws of few examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.head_source import head_source
from vllm_lora_router.tools.bench.datasets import clinc150, exemplars, main, write_config
from vllm_lora_router.tools.bench.few import sample_examples
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


def test_example_has_domain_and_intent_or_is_out_of_scope(data: Path) -> None:
    assert clinc150(data, "train") == [
        Example("train b", "banking", "balance"),
        Example("train f", "travel", "book_flight"),
        Example("what", None),
    ]
    assert exemplars(data) == [Example("May I?", "law"), Example("Must I?", "law"), Example("1 + 1", "math")]


def test_written_files_can_be_read_and_configurations_load(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["datasets", "clinc150", str(data), str(tmp_path / "d")])
    assert main() == 0
    read = read_examples([tmp_path / "d" / "train-intents.jsonl"], ["banking", "travel"]).examples
    assert [(example.text, example.category, example.intent) for example in read] == [
        (example.text, example.category, example.intent) for example in clinc150(data, "train")
    ]
    assert [example.intent for example in read_examples([tmp_path / "d" / "train.jsonl"]).examples] == [
        None,
        None,
        None,
    ]
    assert head_source(load(tmp_path / "d" / "unfitted.yaml").config) is None
    assert load(tmp_path / "d" / "fitted.yaml").config.classifier.embedding_model.head == "head"


def test_configuration_contains_the_given_categories(tmp_path: Path) -> None:
    write_config(tmp_path / "c.yaml", ["a", "b"])
    assert [category.name for category in load(tmp_path / "c.yaml").config.categories] == ["a", "b"]


def test_draws_are_deterministic_for_a_seed_and_can_cover_intents() -> None:
    examples = [Example(f"{number}", "a", f"i{number % 5}") for number in range(50)]
    examples += [Example(f"b{number}", "b", "only") for number in range(50)]
    drawn = sample_examples(examples, 5, 1, cover=True)
    assert drawn == sample_examples(examples, 5, 1, cover=True) != sample_examples(examples, 5, 2, cover=True)
    assert {examples[index].intent for index in drawn if examples[index].category == "a"} == {f"i{n}" for n in range(5)}
    assert sum(examples[index].category == "b" for index in drawn) == 5
    by_chance = [sample_examples(examples, 5, seed, cover=False) for seed in range(10)]
    assert min(len({examples[place].intent for place in draw[:5]}) for draw in by_chance) < 5
