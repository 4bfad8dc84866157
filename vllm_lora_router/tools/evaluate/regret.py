"""The cost of wrong routes, by the matrix that `vllm-lora-router prove` writes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from vllm_lora_router.tools.evaluate.outcome import Outcome
from vllm_lora_router.tools.statistics import Estimate, bootstrap, proportion


class MatrixError(Exception):
    """A file that is not a matrix of `prove`; the message names the file, the problem and the remedy."""


@dataclass(frozen=True, slots=True)
class LikelihoodMatrix:
    """How well each adapter and the base answer each category's prompts."""

    loglik: Mapping[str, Mapping[str, float]]  # category -> adapter or base -> mean log-likelihood, nats per token
    served_by: Mapping[str, str]  # category -> the adapter or base that the configuration assigns
    base: str  # name of the base


@dataclass(frozen=True, slots=True)
class WrongRoute:
    """Prompts of one category that the same wrong model serves."""

    label: str
    served_by: str  # adapter or base
    prompts: int
    nats: float  # cost of each prompt, per token; negative: the wrong model answers better


@dataclass(frozen=True, slots=True)
class Regret:
    """The cost of wrong routes, in nats per token of the answer."""

    mean: Estimate  # per in-scope prompt; correct routes cost 0
    wrong: int  # prompts
    harmless: Estimate | None  # share of wrong routes that cost at most 0
    routes: list[WrongRoute]  # highest total cost first
    left_out: dict[str, int]  # what the matrix does not contain -> prompts that are left out


class _MatrixFormat(msgspec.Struct):
    version: Literal[1]
    matrix: dict[str, dict[str, float]]
    served_by: dict[str, str]
    base: str


def read_matrix(file: Path) -> LikelihoodMatrix:
    """Read the matrix from a file of `prove --json`.

    Raises:
        MatrixError: The file cannot be read or has another format.
    """
    try:
        content = msgspec.json.decode(file.read_bytes(), type=_MatrixFormat)
    except OSError as error:
        raise MatrixError(f"{file}: cannot be read: {error.strerror or error}") from None
    except msgspec.MsgspecError as error:
        raise MatrixError(f"{file}: is not a matrix of vllm-lora-router prove --json: {error}") from None
    return LikelihoodMatrix(content.matrix, content.served_by, content.base)


def compute_regret(outcomes: Sequence[Outcome], matrix: LikelihoodMatrix, seed: int = 0) -> Regret | None:
    """Return the cost of the wrong routes; None if the matrix contains none of the outcomes' categories."""
    costs: list[float] = []
    costs_of: dict[tuple[str, str], list[float]] = {}
    left_out: Counter[str] = Counter()
    for outcome in outcomes:
        if outcome.label is None:
            continue
        served_by = outcome.adapter or matrix.base
        row, assigned = matrix.loglik.get(outcome.label), matrix.served_by.get(outcome.label)
        if row is None:
            left_out[f"category {outcome.label}"] += 1
        elif assigned is None or assigned not in row:
            left_out[f"{assigned or 'no model'}, assigned to {outcome.label}"] += 1
        elif outcome.correct:
            costs.append(0.0)
        elif served_by not in row:
            left_out[f"{served_by} for {outcome.label}"] += 1
        else:
            costs.append(row[assigned] - row[served_by])
            costs_of.setdefault((outcome.label, served_by), []).append(costs[-1])
    if not costs:
        return None
    wrong = [cost for of_route in costs_of.values() for cost in of_route]
    routes = [
        WrongRoute(label, served_by, len(of_route), of_route[0]) for (label, served_by), of_route in costs_of.items()
    ]
    routes.sort(key=lambda route: -route.prompts * route.nats)
    harmless = proportion(cost <= 0 for cost in wrong)
    return Regret(_bootstrap_mean(np.array(costs), seed), len(wrong), harmless, routes, dict(left_out))


def _bootstrap_mean(values: np.ndarray, seed: int) -> Estimate:
    def weighted_mean(counts: np.ndarray) -> float:
        return float((counts * values).sum() / counts.sum())

    return bootstrap(float(values.mean()), len(values), weighted_mean, seed)
