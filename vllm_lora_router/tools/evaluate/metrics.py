"""The figures of a set of answers: how often they are right, how sure they were, and what they confuse."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_lora_router.tools.evaluate.calibration_error import OutOfScope, Reliability, out_of_scope, reliability
from vllm_lora_router.tools.evaluate.confusion import Category, Confusion, by_category, confused, macro_f1
from vllm_lora_router.tools.evaluate.figures import Figure, share
from vllm_lora_router.tools.evaluate.outcome import Answer


@dataclass(frozen=True, slots=True)
class Decided:
    """What one method decided."""

    method: str | None  # None: none was sure
    prompts: int
    right: Figure | None


@dataclass(frozen=True, slots=True)
class Figures:
    """All of them; None where there is nothing to measure."""

    accuracy: Figure  # what is out of scope is right when no method was sure
    in_scope: Figure | None
    left_alone: Figure | None  # of what is out of scope
    guess: Figure | None  # of what is in scope, sure of it or not
    coverage: Figure | None  # of what is in scope: a method was sure
    precision: Figure | None  # where a method was sure; what is out of scope counts as wrong
    macro_f1: Figure | None  # over the categories that have prompts
    reliability: Reliability | None
    out_of_scope: OutOfScope | None
    categories: list[Category]
    confusion: Confusion
    decided: list[Decided]


def figures(answers: Sequence[Answer], seed: int = 0) -> Figures:
    """The figures of answers; scikit-learn must be installed.

    Raises:
        ValueError: there is no answer.
    """
    if not answers:
        raise ValueError("there are no answers to measure")
    in_scope = [one for one in answers if one.in_scope]
    accuracy, confusion = share(one.right for one in answers), confused(answers)
    assert accuracy is not None
    return Figures(
        accuracy=accuracy,
        in_scope=share(one.right for one in in_scope),
        left_alone=share(one.right for one in answers if not one.in_scope),
        guess=share(one.guessed_right for one in in_scope),
        coverage=share(one.sure for one in in_scope),
        precision=share(one.in_scope and one.right for one in answers if one.sure),
        macro_f1=macro_f1(confusion, seed),
        reliability=reliability([one for one in in_scope if one.scale == "probability"], seed),
        out_of_scope=out_of_scope(answers, seed),
        categories=by_category(answers, confusion),
        confusion=confusion,
        decided=_decided(answers),
    )


def _decided(answers: Sequence[Answer]) -> list[Decided]:
    methods = Counter(one.method for one in answers)
    return [
        Decided(method, count, share(one.right for one in answers if one.method == method))
        for method, count in methods.most_common()
    ]
