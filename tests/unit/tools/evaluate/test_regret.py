"""What wrong routes cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.tools.evaluate.regret import Matrix, MatrixError, WrongWay, read_matrix, regret

from .conftest import answer

MATRIX = {
    "version": 1,
    "matrix": {
        "medical": {"medical-lora": -1.0, "legal-lora": -3.0, "base": -2.0},
        "legal": {"medical-lora": -2.5, "legal-lora": -1.5, "base": -1.25},
    },
    "served_by": {"medical": "medical-lora", "legal": "legal-lora"},
    "base": "base",
    "model": "acme/base",
}


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    return read(tmp_path, MATRIX)


def read(folder: Path, said: Any) -> Matrix:
    file = folder / "matrix.json"
    file.write_text(json.dumps(said), "utf-8")
    return read_matrix(file)


def test_a_wrong_route_costs_what_its_answer_is_less_likely(matrix: Matrix) -> None:
    found = regret(
        [
            answer("medical", "medical"),
            answer("medical", "legal"),
            answer("medical", "legal"),
            answer("medical", None),
            answer("legal", None),
            answer(None, "legal"),
        ],
        matrix,
    )
    assert found is not None
    assert found.ways == [
        WrongWay("medical", "legal-lora", 2, 2.0),
        WrongWay("medical", "base", 1, 1.0),
        WrongWay("legal", "base", 1, -0.25),
    ]
    assert (found.mean.value, found.mean.of) == (pytest.approx((2 + 2 + 1 - 0.25) / 5), 5)
    assert found.mean.low < found.mean.value < found.mean.high
    assert found.wrong == 4 and found.harmless is not None and found.harmless.value == 0.25


def test_a_wrong_category_with_the_right_adapter_costs_nothing(matrix: Matrix) -> None:
    found = regret([answer("medical", "legal", adapter="medical-lora"), answer("medical", "medical")], matrix)
    assert found is not None
    assert (found.mean.value, found.harmless and found.harmless.value) == (0.0, 1.0)


def test_right_routes_alone_cost_nothing(matrix: Matrix) -> None:
    found = regret([answer("medical", "medical"), answer("legal", "legal")], matrix)
    assert found is not None
    assert (found.mean.value, found.wrong, found.harmless, found.ways) == (0.0, 0, None, [])


def test_what_the_matrix_does_not_have_is_left_out_and_counted(matrix: Matrix) -> None:
    answers = [answer("coding", "coding"), answer("legal", "coding"), answer("legal", "legal")]
    found = regret(answers, matrix)
    assert found is not None
    assert (found.mean.of, found.unknown) == (1, {"category coding": 1, "coding-lora for legal": 1})
    assert regret(answers[:1], matrix) is None


def test_a_category_whose_own_adapter_was_not_asked_is_left_out_and_counted(tmp_path: Path) -> None:
    matrix = read(tmp_path, {**MATRIX, "served_by": {"medical": "medical-v2", "legal": "legal-lora"}})
    found = regret([answer("medical", "medical"), answer("medical", "legal"), answer("legal", None)], matrix)
    assert found is not None
    assert (found.mean.of, found.unknown) == (1, {"medical-v2, which serves medical": 2})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "is no matrix that vllm-lora-router prove writes: Invalid enum value 2 - at `$.version`"),
        ({"matrix": {"legal": {"base": "low"}}}, "Expected `float`, got `str` - at `$.matrix[...][...]`"),
        ({"served_by": {"legal": None}}, "Expected `str`, got `null` - at `$.served_by[...]`"),
        ({"base": None}, "Expected `str`, got `null` - at `$.base`"),
    ],
)
def test_a_file_that_is_no_matrix_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(MatrixError) as error:
        read(tmp_path, {**MATRIX, **changes})
    assert str(error.value).startswith(f"{tmp_path}/matrix.json: ") and said in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match=r"nowhere.json: cannot be read: No such file"):
        read_matrix(tmp_path / "nowhere.json")
