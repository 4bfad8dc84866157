"""Evaluation of a target on labelled prompts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.latency import MAX_PROMPTS, Latency, measure_latency
from vllm_lora_router.tools.evaluate.metrics import Metrics, compute_metrics
from vllm_lora_router.tools.evaluate.outcome import Outcome, outcome_of
from vllm_lora_router.tools.evaluate.robustness import Robustness, perturbed_texts, plan_perturbed, robustness, sample
from vllm_lora_router.tools.evaluate.slices import Slice, by_length, by_script
from vllm_lora_router.tools.evaluate.targets import Target, plan_all
from vllm_lora_router.tools.progress import ReportProgress, no_progress
from vllm_lora_router.tools.statistics import Estimate

SMALL_CHANGES = 500  # prompts that are perturbed


@dataclass(frozen=True)
class Evaluation:
    """The results of one target."""

    target: str  # the configuration's file, or the server's URL
    versions: tuple[str, ...]  # of the configuration; more than one if it changed during the evaluation
    seed: int
    metrics: Metrics
    lengths: list[Slice]
    scripts: list[Slice]
    robustness: Robustness | None
    latency: Latency
    failures: dict[str, int]  # error, timeout or overload -> prompts for which a method failed this way
    outcomes: tuple[Outcome, ...]

    @property
    def accuracy(self) -> Estimate:
        """The accuracy over all prompts."""
        return self.metrics.accuracy


async def evaluate(
    target: Target,
    examples: Sequence[Example],
    *,
    small_changes: int = SMALL_CHANGES,
    seed: int = 0,
    report_progress: ReportProgress = no_progress,
) -> Evaluation:
    """Evaluate a target on labelled prompts, at least one. Needs scikit-learn.

    Args:
        small_changes: Number of prompts that are also planned with small changes; 0: none.
        seed: Seed of all samples and resamples.
        report_progress: Called after each plan.

    Raises:
        TargetError: The target does not respond.
    """
    texts = [example.text for example in examples]
    latency_progress = _counter(report_progress, "latency", min(MAX_PROMPTS, len(texts)))
    latency = await measure_latency(target, texts, seed, latency_progress)
    plans = await plan_all(target, texts, _counter(report_progress, "prompts", len(texts)))
    outcomes = tuple(outcome_of(example, plan) for example, plan in zip(examples, plans, strict=True))
    sampled = sample(outcomes, small_changes, seed)
    change_progress = _counter(report_progress, "small changes", len(perturbed_texts(sampled, seed)))
    perturbed = await plan_perturbed(target, sampled, seed, change_progress)
    return Evaluation(
        target=target.name,
        versions=tuple(sorted({plan.config_version for plan in plans})),
        seed=seed,
        metrics=compute_metrics(outcomes, seed),
        lengths=by_length(outcomes),
        scripts=by_script(outcomes),
        robustness=robustness(perturbed, seed),
        latency=latency,
        failures=dict(Counter(outcome.failure for outcome in outcomes if outcome.failure is not None)),
        outcomes=outcomes,
    )


def _counter(report_progress: ReportProgress, task: str, total: int) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        report_progress(task, done, total)

    return count
