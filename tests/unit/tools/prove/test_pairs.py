"""Pairs are read from what people have, and what is wrong with them is told by its line."""

from pathlib import Path

import pytest

from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.prove.pairs import Pair, read_pairs

CATEGORIES = ("medical", "legal")


def written(tmp_path: Path, text: str, name: str = "pairs.jsonl") -> Path:
    file = tmp_path / name
    file.write_text(text, "utf-8")
    return file


def test_jsonl_and_csv_are_read_with_prompt_or_text(tmp_path: Path) -> None:
    lines = (
        '{"prompt": "Is it?", "answer": " It is.", "category": "legal", "more": 1}\n\n'
        '{"text": "Why?", "answer": "So.", "category": "medical"}'
    )
    csv = 'prompt;answer;category\n"Two\nlines";yes;legal\n'
    one, two = written(tmp_path, lines), written(tmp_path, csv, "pairs.csv")
    assert read_pairs([one, two], CATEGORIES).pairs == (
        Pair("Is it?", " It is.", "legal", f"{one}:1"),
        Pair("Why?", "So.", "medical", f"{one}:3"),
        Pair("Two\nlines", "yes", "legal", f"{two}:2"),
    )


def test_what_is_empty_or_there_twice_is_left_out_and_told(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '{"prompt": "a", "answer": "b", "category": "legal"}\n'
        '{"prompt": " ", "answer": "b", "category": "legal"}\n'
        '{"prompt": "a", "answer": "", "category": "legal"}\n'
        '{"prompt": "a", "answer": "b", "category": null}\n'
        '{"prompt": "a ", "answer": "b", "category": "legal"}\n'
        '{"prompt": "a", "answer": "b", "category": "medical"}\n',
    )
    read = read_pairs([file], CATEGORIES)
    assert [pair.place for pair in read.pairs] == [f"{file}:1", f"{file}:6"]
    assert read.warnings == (
        f"{file}:2: its prompt is empty; left out",
        f"{file}:3: its answer is empty; left out",
        f"{file}:4: its category is empty; left out",
        f"{file}:5: the same pair as in {file}:1; counted once",
    )


def test_everything_wrong_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    one = written(tmp_path, '{"prompt": "a", "answer": "b", "category": "medcal"}\n')
    two = written(tmp_path, '{"prompt": "a", "category": "legal"}\n', "two.jsonl")
    three = written(tmp_path, '{"question": "a", "answer": "b", "category": "legal"}\n', "three.jsonl")
    with pytest.raises(DataError) as raised:
        read_pairs([one, two, three, tmp_path / "four.jsonl"], CATEGORIES)
    assert raised.value.problems == (
        f"{two}:1: has no 'answer'",
        f"{three}: no line has a 'prompt' (or 'text'); it is what the answer answers",
        f"{tmp_path / 'four.jsonl'}: cannot be read: No such file or directory",
        f"{one}:1: category 'medcal' is not one of the configuration's; did you mean 'medical'?",
    )
