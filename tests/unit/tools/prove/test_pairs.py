"""Pairs from JSONL and CSV files."""

from pathlib import Path

import pytest

from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.prove.pairs import Pair, read_pairs

CATEGORIES = ("medical", "legal")


def write(tmp_path: Path, text: str, name: str = "pairs.jsonl") -> Path:
    file = tmp_path / name
    file.write_text(text, "utf-8")
    return file


def test_jsonl_and_csv_with_prompt_or_text_are_read(tmp_path: Path) -> None:
    lines = (
        '{"prompt": "Is it?", "answer": " It is.", "category": "legal", "more": 1}\n\n'
        '{"text": "Why?", "answer": "So.", "category": "medical"}'
    )
    csv = 'prompt;answer;category\n"Two\nlines";yes;legal\n'
    json_file, csv_file = write(tmp_path, lines), write(tmp_path, csv, "pairs.csv")
    assert read_pairs([json_file, csv_file], CATEGORIES).pairs == (
        Pair("Is it?", " It is.", "legal", f"{json_file}:1"),
        Pair("Why?", "So.", "medical", f"{json_file}:3"),
        Pair("Two\nlines", "yes", "legal", f"{csv_file}:2"),
    )


def test_empty_fields_and_duplicates_are_left_out_with_warnings(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '{"prompt": "a", "answer": "b", "category": "legal"}\n'
        '{"prompt": " ", "answer": "b", "category": "legal"}\n'
        '{"prompt": "a", "answer": "", "category": "legal"}\n'
        '{"prompt": "a", "answer": "b", "category": null}\n'
        '{"prompt": "a ", "answer": "b", "category": "legal"}\n'
        '{"prompt": "a", "answer": "b", "category": "medical"}\n',
    )
    result = read_pairs([file], CATEGORIES)
    assert [pair.location for pair in result.pairs] == [f"{file}:1", f"{file}:6"]
    assert result.warnings == (
        f"{file}:2: the prompt is empty; left out",
        f"{file}:3: the answer is empty; left out",
        f"{file}:4: the category is empty; left out",
        f"{file}:5: duplicate of the pair in {file}:1; counted once",
    )


def test_problems_of_all_files_are_reported_together(tmp_path: Path) -> None:
    first = write(tmp_path, '{"prompt": "a", "answer": "b", "category": "medcal"}\n')
    second = write(tmp_path, '{"prompt": "a", "category": "legal"}\n', "two.jsonl")
    third = write(tmp_path, '{"question": "a", "answer": "b", "category": "legal"}\n', "three.jsonl")
    with pytest.raises(DataError) as raised:
        read_pairs([first, second, third, tmp_path / "four.jsonl"], CATEGORIES)
    assert raised.value.problems == (
        f"{second}:1: has no 'answer'",
        f"{third}: no line has a 'prompt' (or 'text'); add the prompt of each answer",
        f"{tmp_path / 'four.jsonl'}: cannot be read: No such file or directory",
        f"{first}:1: category 'medcal' is not in the configuration; did you mean 'medical'?",
    )
