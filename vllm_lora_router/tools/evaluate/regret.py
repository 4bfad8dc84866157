"""What a wrong route costs: by the matrix of `vllm-lora-router prove`, which knows how well each adapter answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from vllm_lora_router.tools.evaluate.figures import Figure, bootstrapped, share
from vllm_lora_router.tools.evaluate.outcome import Answer


class MatrixError(Exception):
    """A file that is no matrix of `prove`; the message names it, what is wrong and the way out."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """How well each adapter and the base answer each category's prompts."""

    loglik: Mapping[str, Mapping[str, float]]  # category -> adapter or base -> mean log-likelihood, nats a token
    served_by: Mapping[str, str]  # category -> the adapter or base that should serve it
    base: str  # the base's name


@dataclass(frozen=True, slots=True)
class WrongWay:
    """Prompts of one category that were served by the wrong target."""

    label: str
    taken: str  # adapter or base
    prompts: int
    nats: float  # a token; what each of them costs; below 0: it is better served


@dataclass(frozen=True, slots=True)
class Regret:
    """What wrong routes cost, in nats a token of the answer."""

    mean: Figure  # a prompt in scope; right routes cost nothing
    wrong: int
    harmless: Figure | None  # the share of wrong routes that cost nothing
    ways: list[WrongWay]  # the most costly first
    unknown: dict[str, int]  # what the matrix says nothing of -> prompts that are left out for it


class _File(msgspec.Struct):
    version: Literal[1]
    matrix: dict[str, dict[str, float]]
    served_by: dict[str, str]
    base: str


def read_matrix(file: Path) -> Matrix:
    """The matrix in a file of `prove`.

    Raises:
        MatrixError: it cannot be read, or has another form.
    """
    try:
        said = msgspec.json.decode(file.read_bytes(), type=_File)
    except OSError as error:
        raise MatrixError(f"{file}: cannot be read: {error.strerror or error}") from None
    except msgspec.MsgspecError as error:
        raise MatrixError(f"{file}: is no matrix that vllm-lora-router prove writes: {error}") from None
    return Matrix(said.matrix, said.served_by, said.base)


def regret(answers: Sequence[Answer], matrix: Matrix, seed: int = 0) -> Regret | None:
    """What the wrong routes among the answers cost; None where the matrix knows none of their categories."""
    costs: list[float] = []
    ways: dict[tuple[str, str], list[float]] = {}
    unknown: Counter[str] = Counter()
    for one in answers:
        if one.label is None:
            continue
        taken = one.adapter or matrix.base
        row, own = matrix.loglik.get(one.label), matrix.served_by.get(one.label)
        if row is None:
            unknown[f"category {one.label}"] += 1
        elif own is None or own not in row:
            unknown[f"{own or 'nothing'}, which serves {one.label}"] += 1
        elif one.right:
            costs.append(0.0)
        elif taken not in row:
            unknown[f"{taken} for {one.label}"] += 1
        else:
            costs.append(row[own] - row[taken])
            ways.setdefault((one.label, taken), []).append(costs[-1])
    if not costs:
        return None
    wrong = [cost for own in ways.values() for cost in own]
    found = [WrongWay(label, taken, len(own), own[0]) for (label, taken), own in ways.items()]
    found.sort(key=lambda way: -way.prompts * way.nats)
    return Regret(_mean(np.array(costs), seed), len(wrong), share(cost <= 0 for cost in wrong), found, dict(unknown))


def _mean(values: np.ndarray, seed: int) -> Figure:
    def measure(counts: np.ndarray) -> float:
        return float((counts * values).sum() / counts.sum())

    return bootstrapped(float(values.mean()), len(values), measure, seed)
