"""The candidates of each category, best first, and the fallback."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from msgspec.structs import replace

from vllm_lora_router.config.schema import Category, Config, ModelScore
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.ab_assignment import AssignmentKey, assign_arm, rank_arms
from vllm_lora_router.routing.mcp_overrides import McpOverrides
from vllm_lora_router.types import Assignment, Candidate, Overrides


@dataclass(frozen=True)
class Arms:
    """The A/B test of a category: the candidate and the weight of each arm."""

    candidates: Mapping[str, Candidate]
    weights: Mapping[str, float]


class Candidates:
    """The candidates of all categories, built once for each configuration."""

    def __init__(self, config: Config, base: ServedBase) -> None:
        self.default = (_default_candidate(config, base),)
        self._overrides = McpOverrides(config, base, self.default[0])
        self.by_category: Mapping[str, tuple[Candidate, ...]] = {
            category.name: tuple(_candidates(category, base)) for category in config.categories
        }
        self.arms: Mapping[str, Arms] = {
            category.name: arms
            for category in config.categories
            if category.selection == "weighted" and (arms := _arms(category, base)) is not None
        }

    def for_category(
        self, category: str | None, key: Callable[[], AssignmentKey], overrides: Overrides | None = None
    ) -> tuple[tuple[Candidate, ...], Assignment | None]:
        """Return the candidates in the order in which they are tried, and the A/B assignment that ordered them.

        The last candidate is `default_model`.

        Args:
            key: Returns the key for A/B tests. It is called only if the category has an A/B test.
            overrides: The overrides that a tool returned with the category.
        """
        if category is None:
            return self.default, None
        candidates, assignment = self._configured(category, key)
        if overrides is not None:
            candidates, assignment = self._overrides.apply(overrides, category, candidates, assignment, key)
        return (*candidates, *self.default), assignment

    def _configured(
        self, category: str, key: Callable[[], AssignmentKey]
    ) -> tuple[tuple[Candidate, ...], Assignment | None]:
        if (arms := self.arms.get(category)) is None:
            return self.by_category.get(category, ()), None  # a tool may have categories of its own
        assignment_key = key()
        ordered = tuple(arms.candidates[arm] for arm in rank_arms(assignment_key.key, category, arms.weights))
        return ordered, assign_arm(assignment_key, category, arms.weights)


def _candidates(category: Category, base: ServedBase) -> list[Candidate]:
    entries = [entry for entry in category.model_scores if entry.model == base.alias]
    entries.sort(key=lambda entry: -entry.score)  # the sort is stable: of equal scores the first listed wins
    return [_candidate(entry, category, base) for entry in entries]


def _arms(category: Category, base: ServedBase) -> Arms | None:
    """Return the A/B test of a category, or None if no arm with a weight belongs to this base model."""
    candidates: dict[str, Candidate] = {}
    weights: dict[str, float] = {}
    for entry in category.model_scores:
        if entry.model == base.alias:
            arm = name = entry.lora_name or base.alias
            # The same adapter may be several arms, for example with and without reasoning. An adapter may also be
            # called like such an arm.
            numbers = count(2)
            while arm in candidates:
                arm = f"{name}#{next(numbers)}"
            source = f"category {category.name}, arm {arm} of weight {entry.score:g}"
            candidates[arm] = replace(_candidate(entry, category, base), arm=arm, source=source)
            weights[arm] = entry.score
    return Arms(candidates, weights) if any(weights.values()) else None


def _candidate(entry: ModelScore, category: Category, base: ServedBase) -> Candidate:
    return Candidate(
        model=entry.lora_name or base.served_name,
        adapter=entry.lora_name,
        reasoning=base.reasoning(entry),
        system_prompt=category.system_prompt if category.system_prompt_enabled else None,
        system_prompt_mode=category.system_prompt_mode,
        source=f"category {category.name}, score {entry.score:g}",
    )


def _default_candidate(config: Config, base: ServedBase) -> Candidate:
    # If `default_model` names the base model of another server, this server's base model is used.
    adapter = None if config.default_model in config.bases else config.default_model
    return Candidate(adapter or base.served_name, adapter, source="default_model")
