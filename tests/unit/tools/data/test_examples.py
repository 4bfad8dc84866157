"""Labelled prompts from files: what is wrong with them is said with its line, and nothing that is right is lost."""

from pathlib import Path

import pytest

from vllm_lora_router.tools.data.examples import Example, read_examples
from vllm_lora_router.tools.data.rows import SHOWN, DataError, read_rows


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def problems(*files: Path, categories: tuple[str, ...] | None = None) -> list[str]:
    with pytest.raises(DataError) as error:
        read_examples(files, categories)
    return list(error.value.problems)


def test_lines_of_json_and_csv_say_the_same(tmp_path: Path) -> None:
    lines = written(
        tmp_path,
        "a.jsonl",
        '{"text": "Hello, you", "category": "talk", "intent": "greeting", "more": 1}\n\n'
        '{"text": "?", "category": null}\n',
    )
    table = written(
        tmp_path, "a.csv", '\ufefftext,category,intent,more\r\n"Hello, you",talk,greeting,1\r\n\r\n?,,,\r\n'
    )
    semicolons = written(tmp_path, "b.csv", "category;text\ntalk;Hello, you\n;?\n")
    tabs = written(tmp_path, "c.tsv", "category\ttext\ntalk\tHello, you\n\t?\n")
    assert read_examples([lines]).examples == (
        Example("Hello, you", "talk", "greeting", f"{lines}:1"),
        Example("?", None, None, f"{lines}:3"),
    )
    assert read_examples([table]).examples == (
        Example("Hello, you", "talk", "greeting", f"{table}:2"),
        Example("?", None, None, f"{table}:4"),
    )
    for file in (semicolons, tabs):
        assert [(one.text, one.category) for one in read_examples([file]).examples] == [
            ("Hello, you", "talk"),
            ("?", None),
        ]


def test_a_cell_of_several_lines_counts_as_the_line_where_it_begins(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", 'text,category\n"two\nlines",a\nthree,b\n')
    assert [one.place for one in read_examples([file]).examples] == [f"{file}:2", f"{file}:4"]


def test_a_label_that_is_no_category_is_an_error_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", '{"text": "x", "category": "legal"}\n{"text": "y", "category": "leagl"}\n')
    assert problems(file, categories=("legal", "medical")) == [
        f"{file}:2: category 'leagl' is not one of the configuration's; did you mean 'legal'?"
    ]


def test_all_files_are_told_of_at_once_and_many_problems_are_cut_short(tmp_path: Path) -> None:
    bad = written(tmp_path, "bad.jsonl", "no\n" * (SHOWN + 7))
    wrong = written(tmp_path, "wrong.csv", "txt,category\nx,a\n")
    found = problems(bad, wrong, tmp_path / "none.jsonl")
    assert found[0].startswith(f"{bad}:1: is not JSON")
    assert found[SHOWN] == "and 7 more lines that cannot be read"
    assert found[SHOWN + 1].startswith(f"{wrong}:1: its header has no 'text'; did you mean 'txt'?")
    assert "cannot be read: No such file" in found[-1]


def test_empty_texts_are_left_out_with_a_warning(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", '{"text": " ", "category": "a"}\n{"text": "x", "category": "a"}\n')
    found = read_examples([file])
    assert [one.text for one in found.examples] == ["x"]
    assert found.warnings == (f"{file}:1: its text is empty; left out",)


def test_a_text_under_two_categories_is_left_out_and_a_repeated_one_counts_once(tmp_path: Path) -> None:
    rows = [("Sue  me", "a"), ("sue me", "b"), ("x", "a"), ("X", "a"), ("y", None), ("y", "b")]
    file = written(tmp_path, "a.csv", "text,category\n" + "".join(f"{text},{label or ''}\n" for text, label in rows))
    found = read_examples([file])
    assert [(one.text, one.category) for one in found.examples] == [("x", "a")]
    assert found.warnings == (
        f"{file}:3: 'sue me' is 'b' here and 'a' in {file}:2; left out, for it cannot be both",
        f"{file}:7: 'y' is 'b' here and out of scope in {file}:6; left out, for it cannot be both",
        f"{file}:5: the same text as in {file}:4; counted once",
    )


def test_two_encodings_in_a_file_are_told_by_line(tmp_path: Path) -> None:
    content = '{"text": "café", "category": "a"}\n'.encode() + '{"text": "café", "category": "a"}\n'.encode("latin-1")
    (found,) = problems(written(tmp_path, "a.jsonl", content))
    assert found.startswith(f"{tmp_path / 'a.jsonl'}:2: byte 14 is 0xe9, which is not UTF-8 (as Latin-1 it would read ")
    assert "café" in found


def test_utf_16_is_named(tmp_path: Path) -> None:
    (found,) = problems(written(tmp_path, "a.csv", "text,category\n".encode("utf-16")))
    assert found == f"{tmp_path / 'a.csv'}: is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "x"}', "has no 'category'"),
        ('{"txt": "x", "category": "a"}', "has no 'text'; did you mean 'txt'?"),
        ('{"text": 3, "category": "a"}', "'text' must be text or null, and 3 is not"),
        ('["x", "a"]', 'must be an object such as {"text": "...", "category": "..."}'),
    ],
)
def test_a_line_of_another_form_is_told(tmp_path: Path, line: str, said: str) -> None:
    file = written(tmp_path, "a.jsonl", f"{line}\n")
    assert problems(file) == [f"{file}:1: {said}"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "text,category\nyes, no,a\n",
            ":2: has 3 cells and the header 2; put a text with ',' in it into double quotes",
        ),
        ('text,category\nx,a\n"x,a\n', ":3: is not CSV (unexpected end of data)"),
    ],
)
def test_a_table_of_another_form_is_told(tmp_path: Path, content: str, said: str) -> None:
    file = written(tmp_path, "a.csv", content)
    (found,) = problems(file)
    assert found.startswith(f"{file}{said}")


def test_other_fields_can_be_asked_for(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", '{"prompt": "x", "answer": "y"}\n')
    (row,) = read_rows(file, ("prompt", "answer"), ("category",))
    assert (row.line, dict(row.values)) == (1, {"prompt": "x", "answer": "y", "category": None})
