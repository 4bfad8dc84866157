"""Labelled prompts through a subject: everything that is measured, in one value."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.figures import Figure
from vllm_lora_router.tools.evaluate.latency import AT_MOST, Latency, latency
from vllm_lora_router.tools.evaluate.metrics import Figures, figures
from vllm_lora_router.tools.evaluate.outcome import Answer, answer
from vllm_lora_router.tools.evaluate.robustness import Agreement, agreement, ask_again, sample, variants
from vllm_lora_router.tools.evaluate.slices import Slice, by_length, by_script
from vllm_lora_router.tools.evaluate.targets import Subject, plans
from vllm_lora_router.tools.progress import Told

SMALL_CHANGES = 500  # prompts that are changed


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one subject."""

    subject: str  # a configuration's file, or a server's URL
    versions: tuple[str, ...]  # of the configurations that answered; more than one: it changed meanwhile
    seed: int
    figures: Figures
    lengths: list[Slice]
    scripts: list[Slice]
    agreement: Agreement | None
    latency: Latency
    failures: dict[str, int]  # error, timeout or overload -> prompts for which a method failed so
    answers: tuple[Answer, ...]

    @property
    def accuracy(self) -> Figure:
        return self.figures.accuracy


async def evaluate(
    subject: Subject,
    examples: Sequence[Example],
    *,
    small_changes: int = SMALL_CHANGES,
    seed: int = 0,
    told: Told = lambda what, done, of: None,
) -> Evaluation:
    """Measures a subject on labelled prompts, at least one; scikit-learn must be installed.

    Args:
        small_changes: so many prompts are asked again with small changes; 0: none.
        told: of progress.

    Raises:
        SubjectError: the subject does not answer.
    """
    texts = [example.text for example in examples]
    timed = await latency(subject, texts, seed, _counter(told, "one at a time", min(AT_MOST, len(texts))))
    found = await plans(subject, texts, _counter(told, "prompts", len(texts)))
    answers = tuple(answer(example, plan) for example, plan in zip(examples, found, strict=True))
    drawn = sample(answers, small_changes, seed)
    again = await ask_again(subject, drawn, seed, _counter(told, "small changes", len(variants(drawn, seed))))
    return Evaluation(
        subject=subject.name,
        versions=tuple(sorted({plan.config_version for plan in found})),
        seed=seed,
        figures=figures(answers, seed),
        lengths=by_length(answers),
        scripts=by_script(answers),
        agreement=agreement(again, seed),
        latency=timed,
        failures=dict(Counter(one.failure for one in answers if one.failure is not None)),
        answers=answers,
    )


def _counter(told: Told, what: str, of: int) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        told(what, done, of)

    return count
