"""Labelled prompts from JSONL and CSV files."""

from pathlib import Path

import pytest

from vllm_lora_router.tools.data.examples import Example, read_examples
from vllm_lora_router.tools.data.rows import MAX_PROBLEMS, DataError, read_rows


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def problems(*files: Path, categories: tuple[str, ...] | None = None) -> list[str]:
    with pytest.raises(DataError) as error:
        read_examples(files, categories)
    return list(error.value.problems)


def test_json_lines_and_csv_give_the_same_examples(tmp_path: Path) -> None:
    lines = write(
        tmp_path,
        "a.jsonl",
        '{"text": "Hello, you", "category": "talk", "intent": "greeting", "more": 1}\n\n'
        '{"text": "?", "category": null}\n',
    )
    table = write(tmp_path, "a.csv", '\ufefftext,category,intent,more\r\n"Hello, you",talk,greeting,1\r\n\r\n?,,,\r\n')
    semicolons = write(tmp_path, "b.csv", "category;text\ntalk;Hello, you\n;?\n")
    tabs = write(tmp_path, "c.tsv", "category\ttext\ntalk\tHello, you\n\t?\n")
    assert read_examples([lines]).examples == (
        Example("Hello, you", "talk", "greeting", f"{lines}:1"),
        Example("?", None, None, f"{lines}:3"),
    )
    assert read_examples([table]).examples == (
        Example("Hello, you", "talk", "greeting", f"{table}:2"),
        Example("?", None, None, f"{table}:4"),
    )
    for file in (semicolons, tabs):
        assert [(example.text, example.category) for example in read_examples([file]).examples] == [
            ("Hello, you", "talk"),
            ("?", None),
        ]


def test_multiline_cell_has_the_line_where_it_begins(tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", 'text,category\n"two\nlines",a\nthree,b\n')
    assert [example.location for example in read_examples([file]).examples] == [f"{file}:2", f"{file}:4"]


def test_unknown_category_is_reported_with_line_and_suggestion(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", '{"text": "x", "category": "legal"}\n{"text": "y", "category": "leagl"}\n')
    assert problems(file, categories=("legal", "medical")) == [
        f"{file}:2: category 'leagl' is not in the configuration; did you mean 'legal'?"
    ]


def test_problems_of_all_files_are_reported_together_and_limited(tmp_path: Path) -> None:
    bad = write(tmp_path, "bad.jsonl", "no\n" * (MAX_PROBLEMS + 7))
    wrong = write(tmp_path, "wrong.csv", "txt,category\nx,a\n")
    reported = problems(bad, wrong, tmp_path / "none.jsonl")
    assert reported[0].startswith(f"{bad}:1: is not JSON")
    assert reported[MAX_PROBLEMS] == "and 7 more lines that cannot be read"
    assert reported[MAX_PROBLEMS + 1].startswith(f"{wrong}:1: the header has no 'text'; did you mean 'txt'?")
    assert "cannot be read: No such file" in reported[-1]


def test_empty_text_is_left_out_with_a_warning(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", '{"text": " ", "category": "a"}\n{"text": "x", "category": "a"}\n')
    result = read_examples([file])
    assert [example.text for example in result.examples] == ["x"]
    assert result.warnings == (f"{file}:1: the text is empty; left out",)


def test_text_with_two_categories_is_left_out_and_duplicate_counts_once(tmp_path: Path) -> None:
    rows = [("Sue  me", "a"), ("sue me", "b"), ("x", "a"), ("X", "a"), ("y", None), ("y", "b")]
    file = write(tmp_path, "a.csv", "text,category\n" + "".join(f"{text},{label or ''}\n" for text, label in rows))
    result = read_examples([file])
    assert [(example.text, example.category) for example in result.examples] == [("x", "a")]
    assert result.warnings == (
        f"{file}:3: 'sue me' is 'b' here and 'a' in {file}:2; both are left out",
        f"{file}:7: 'y' is 'b' here and out of scope in {file}:6; both are left out",
        f"{file}:5: duplicate of the text in {file}:4; counted once",
    )


def test_mixed_encodings_are_reported_with_the_line(tmp_path: Path) -> None:
    content = '{"text": "café", "category": "a"}\n'.encode() + '{"text": "café", "category": "a"}\n'.encode("latin-1")
    (problem,) = problems(write(tmp_path, "a.jsonl", content))
    assert problem.startswith(f"{tmp_path / 'a.jsonl'}:2: byte 14 is 0xe9, which is not UTF-8 (as Latin-1: ")
    assert "café" in problem


def test_utf_16_is_reported(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, "a.csv", "text,category\n".encode("utf-16")))
    assert problem == f"{tmp_path / 'a.csv'}: is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "x"}', "has no 'category'"),
        ('{"txt": "x", "category": "a"}', "has no 'text'; did you mean 'txt'?"),
        ('{"text": 3, "category": "a"}', "'text' must be text or null, not 3"),
        ('["x", "a"]', 'must be an object such as {"text": "...", "category": "..."}'),
    ],
)
def test_invalid_line_is_reported(tmp_path: Path, line: str, problem: str) -> None:
    file = write(tmp_path, "a.jsonl", f"{line}\n")
    assert problems(file) == [f"{file}:1: {problem}"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "text,category\nyes, no,a\n",
            ":2: has 3 cells, but the header has 2; put texts that contain ',' in double quotes",
        ),
        ('text,category\nx,a\n"x,a\n', ":3: is not CSV (unexpected end of data)"),
    ],
)
def test_invalid_table_is_reported(tmp_path: Path, content: str, expected: str) -> None:
    file = write(tmp_path, "a.csv", content)
    (problem,) = problems(file)
    assert problem.startswith(f"{file}{expected}")


def test_read_rows_returns_requested_fields(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", '{"prompt": "x", "answer": "y"}\n')
    (row,) = read_rows(file, ("prompt", "answer"), ("category",))
    assert (row.line, dict(row.values)) == (1, {"prompt": "x", "answer": "y", "category": None})
