"""The outcome of routing one labelled prompt."""

from dataclasses import dataclass

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.types import Method, Plan, Reason, Scale


@dataclass(frozen=True, slots=True)
class Outcome:
    """A labelled prompt and its routing plan."""

    text: str
    label: str | None  # None: out of scope
    location: str  # file:line
    chosen: str | None  # the plan's category, which may be `fallback_category`
    accepted: bool  # whether a method accepted a category
    correct: bool  # the label was chosen; for an out-of-scope prompt: no method accepted a category
    method: Method | None  # the method that accepted a category
    guess: str | None  # best category of the accepting method, else of the last method with a best category
    score: float  # of the guess, on `scale`; 0 without a guess
    scale: Scale | None
    guess_method: Method | None
    adapter: str | None  # the first candidate; None: the base
    failure: Reason | None  # of a method that failed, timed out or was overloaded

    @property
    def in_scope(self) -> bool:
        """Whether the prompt has a category."""
        return self.label is not None

    @property
    def guess_correct(self) -> bool:
        """Whether the guess is the label, accepted or not."""
        return self.in_scope and self.guess == self.label


def outcome_of(example: Example, plan: Plan) -> Outcome:
    """Return the outcome of a plan for a labelled prompt."""
    step = next((step for step in reversed(plan.steps) if step.classification and step.classification.category), None)
    classification = step.classification if step is not None else None
    accepted = plan.method is not None
    return Outcome(
        text=example.text,
        label=example.category,
        location=example.location,
        chosen=plan.category,
        accepted=accepted,
        correct=(not accepted) if example.category is None else plan.category == example.category,
        method=plan.method,
        guess=classification.category if classification else None,
        score=classification.score if classification else 0.0,
        scale=classification.scale if classification else None,
        guess_method=step.method if step else None,
        adapter=plan.candidates[0].adapter,
        failure=next((step.failure for step in plan.steps if step.failure is not None), None),
    )
