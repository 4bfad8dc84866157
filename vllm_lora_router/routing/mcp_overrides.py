"""Overrides of an MCP tool: the adapters, the reasoning and the system prompt that it requests with a category."""

from collections.abc import Callable

from msgspec.structs import replace

from vllm_lora_router.config.schema import Config, ModelScore
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.ab_assignment import AssignmentKey, assign_arm, rank_arms
from vllm_lora_router.types import Assignment, Candidate, Overrides


class McpOverrides:
    """Applies overrides to candidates, for one configuration and one base model."""

    def __init__(self, config: Config, base: ServedBase, default: Candidate) -> None:
        """Prepare a configuration.

        Args:
            default: The candidate for `default_model`.
        """
        self._default = default
        self._categories = {category.name: category for category in config.categories}
        self._base = base
        # As in the rest of a configuration, the base model of another server means this server's base model.
        self._base_names = {*config.bases, base.served_name}

    def apply(
        self,
        overrides: Overrides,
        category: str,
        configured: tuple[Candidate, ...],
        assignment: Assignment | None,
        key: Callable[[], AssignmentKey],
    ) -> tuple[tuple[Candidate, ...], Assignment | None]:
        """Return the requested candidates followed by the category's own, and the A/B assignment that ordered them.

        Args:
            configured: The category's own candidates, in the order of `assignment`.
            key: Returns the key for A/B tests.
        """
        names = [overrides.model] if overrides.model is not None else []
        settings = self._categories.get(category)
        if overrides.models and not names and settings is not None and settings.selection == "weighted":
            weights = dict(overrides.models)
            if any(weights.values()):
                assignment_key = key()
                arms = rank_arms(assignment_key.key, category, weights)
                requested = [replace(self._candidate(arm, overrides, category, configured), arm=arm) for arm in arms]
                candidates = self._combine(requested, overrides, category, configured)
                return candidates, assign_arm(assignment_key, category, weights)
        # The sort is stable: of equal scores the first listed wins.
        names += sorted(overrides.models, key=lambda name: -overrides.models[name])
        requested = [self._candidate(name, overrides, category, configured) for name in dict.fromkeys(names)]
        if not requested and not configured:
            # Only `default_model` is left. The overrides apply to it, too.
            requested = [self._with_overrides(self._default, overrides, category)]
        candidates = self._combine(requested, overrides, category, configured)
        return candidates, None if requested else assignment

    def _combine(
        self, requested: list[Candidate], overrides: Overrides, category: str, configured: tuple[Candidate, ...]
    ) -> tuple[Candidate, ...]:
        # If no requested adapter can serve, the category's own candidates follow in their usual order.
        names = {candidate.model for candidate in requested}
        others = [
            self._with_overrides(candidate, overrides, category)
            for candidate in configured
            if candidate.model not in names
        ]
        return (*requested, *(replace(candidate, arm=None) if requested else candidate for candidate in others))

    def _candidate(
        self, name: str, overrides: Overrides, category: str, configured: tuple[Candidate, ...]
    ) -> Candidate:
        adapter = None if name in self._base_names else name
        same = next((candidate for candidate in configured if candidate.adapter == adapter), None)
        candidate = same or Candidate(self._base.served_name if adapter is None else name, adapter)
        if same is None and (settings := self._categories.get(category)) is not None:
            prompt = settings.system_prompt if settings.system_prompt_enabled else None
            candidate = replace(candidate, system_prompt=prompt, system_prompt_mode=settings.system_prompt_mode)
        source = f"requested by the tool for category {category}"
        return replace(self._with_overrides(candidate, overrides, category), arm=None, source=source)

    def _with_overrides(self, candidate: Candidate, overrides: Overrides, category: str) -> Candidate:
        settings = self._categories.get(category)
        if overrides.system_prompt is not None and (settings is None or settings.system_prompt_enabled):
            candidate = replace(candidate, system_prompt=overrides.system_prompt)
        on, effort = overrides.use_reasoning, overrides.reasoning_effort
        if on is None and effort is not None:
            on = effort != "none"
        if on is None:
            return candidate
        entry = ModelScore.model_construct(model=self._base.alias, use_reasoning=on, reasoning_effort=effort)
        return replace(candidate, reasoning=self._base.reasoning(entry))
