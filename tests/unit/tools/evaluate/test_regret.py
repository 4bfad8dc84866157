"""The cost of wrong routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.tools.evaluate.regret import (
    LikelihoodMatrix,
    MatrixError,
    WrongRoute,
    compute_regret,
    read_matrix,
)

from .conftest import outcome

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
def matrix(tmp_path: Path) -> LikelihoodMatrix:
    return read(tmp_path, MATRIX)


def read(folder: Path, content: Any) -> LikelihoodMatrix:
    file = folder / "matrix.json"
    file.write_text(json.dumps(content), "utf-8")
    return read_matrix(file)


def test_wrong_route_costs_the_difference_of_log_likelihoods(matrix: LikelihoodMatrix) -> None:
    result = compute_regret(
        [
            outcome("medical", "medical"),
            outcome("medical", "legal"),
            outcome("medical", "legal"),
            outcome("medical", None),
            outcome("legal", None),
            outcome(None, "legal"),
        ],
        matrix,
    )
    assert result is not None
    assert result.routes == [
        WrongRoute("medical", "legal-lora", 2, 2.0),
        WrongRoute("medical", "base", 1, 1.0),
        WrongRoute("legal", "base", 1, -0.25),
    ]
    assert (result.mean.value, result.mean.n) == (pytest.approx((2 + 2 + 1 - 0.25) / 5), 5)
    assert result.mean.low < result.mean.value < result.mean.high
    assert result.wrong == 4 and result.harmless is not None and result.harmless.value == 0.25


def test_wrong_category_with_the_right_adapter_has_no_cost(matrix: LikelihoodMatrix) -> None:
    result = compute_regret(
        [outcome("medical", "legal", adapter="medical-lora"), outcome("medical", "medical")], matrix
    )
    assert result is not None
    assert (result.mean.value, result.harmless and result.harmless.value) == (0.0, 1.0)


def test_correct_routes_have_no_cost(matrix: LikelihoodMatrix) -> None:
    result = compute_regret([outcome("medical", "medical"), outcome("legal", "legal")], matrix)
    assert result is not None
    assert (result.mean.value, result.wrong, result.harmless, result.routes) == (0.0, 0, None, [])


def test_prompts_that_are_not_in_the_matrix_are_left_out_and_counted(matrix: LikelihoodMatrix) -> None:
    outcomes = [outcome("coding", "coding"), outcome("legal", "coding"), outcome("legal", "legal")]
    result = compute_regret(outcomes, matrix)
    assert result is not None
    assert (result.mean.n, result.left_out) == (1, {"category coding": 1, "coding-lora for legal": 1})
    assert compute_regret(outcomes[:1], matrix) is None


def test_category_without_score_of_its_assigned_adapter_is_left_out_and_counted(tmp_path: Path) -> None:
    matrix = read(tmp_path, {**MATRIX, "served_by": {"medical": "medical-v2", "legal": "legal-lora"}})
    result = compute_regret(
        [outcome("medical", "medical"), outcome("medical", "legal"), outcome("legal", None)], matrix
    )
    assert result is not None
    assert (result.mean.n, result.left_out) == (1, {"medical-v2, assigned to medical": 2})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 2}, "is not a matrix of vllm-lora-router prove --json: Invalid enum value 2 - at `$.version`"),
        ({"matrix": {"legal": {"base": "low"}}}, "Expected `float`, got `str` - at `$.matrix[...][...]`"),
        ({"served_by": {"legal": None}}, "Expected `str`, got `null` - at `$.served_by[...]`"),
        ({"base": None}, "Expected `str`, got `null` - at `$.base`"),
    ],
)
def test_invalid_matrix_file_is_reported(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(MatrixError) as error:
        read(tmp_path, {**MATRIX, **changes})
    assert str(error.value).startswith(f"{tmp_path}/matrix.json: ") and expected in str(error.value)


def test_missing_matrix_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match=r"nowhere.json: cannot be read: No such file"):
        read_matrix(tmp_path / "nowhere.json")
