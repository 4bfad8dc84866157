"""What became of a labelled prompt."""

from dataclasses import dataclass

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.types import Method, Plan, Reason, Scale


@dataclass(frozen=True, slots=True)
class Answer:
    """One labelled prompt, and what its plan says."""

    text: str
    label: str | None  # None: out of scope
    place: str  # file:line
    chosen: str | None  # the plan's category, that of `fallback_category` among them
    sure: bool  # whether a method was
    right: bool  # the label was chosen; for what is out of scope: no method was sure
    method: Method | None  # that was sure
    guess: str | None  # the best category of the method that was sure, else of the last that names one
    score: float  # of the guess, on `scale`; 0 without one
    scale: Scale | None
    guessed_by: Method | None
    adapter: str | None  # that would serve; None: the base
    failure: Reason | None  # of a method that failed, was late or had too much to do

    @property
    def in_scope(self) -> bool:
        return self.label is not None

    @property
    def guessed_right(self) -> bool:
        """Whether the guess is the label, sure of it or not."""
        return self.in_scope and self.guess == self.label


def answer(example: Example, plan: Plan) -> Answer:
    """What a plan means for a prompt whose label is known."""
    step = next((step for step in reversed(plan.steps) if step.classification and step.classification.category), None)
    found = step.classification if step is not None else None
    sure = plan.method is not None
    return Answer(
        example.text,
        example.category,
        example.place,
        plan.category,
        sure,
        (not sure) if example.category is None else plan.category == example.category,
        plan.method,
        found.category if found else None,
        found.score if found else 0.0,
        found.scale if found else None,
        step.method if step else None,
        plan.candidates[0].adapter,
        next((step.failure for step in plan.steps if step.failure is not None), None),
    )
