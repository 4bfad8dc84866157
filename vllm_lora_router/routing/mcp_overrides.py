"""What a tool asks for beside a category, as candidates like any others."""

from collections.abc import Callable

from msgspec.structs import replace

from vllm_lora_router.config.schema import Config, ModelScore
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.ab_assignment import Sticky, draw, order
from vllm_lora_router.types import Assignment, Candidate, Overrides


class Wishes:
    """Turns wishes into candidates for one configuration and one base."""

    def __init__(self, config: Config, base: ServedBase, default: Candidate) -> None:
        """`default` is what serves where nothing else does."""
        self._default = default
        self._categories = {category.name: category for category in config.categories}
        self._base = base
        # As everywhere, another server's base is here this server's.
        self._bases = {*config.bases, base.served_name}

    def obey(
        self,
        wish: Overrides,
        category: str,
        own: tuple[Candidate, ...],
        drawn: Assignment | None,
        sticky: Callable[[], Sticky],
    ) -> tuple[tuple[Candidate, ...], Assignment | None]:
        """The category's candidates with those that are wished for before them, and the draw that ordered these.

        Args:
            own: the category's, in the order that `drawn` gave them.
            sticky: what an A/B test goes by.
        """
        names = [wish.model] if wish.model is not None else []
        configured = self._categories.get(category)
        if wish.models and not names and configured is not None and configured.selection == "weighted":
            weights = dict(wish.models)
            if any(weights.values()):
                found = sticky()
                names = order(found.key, category, weights)
                drawn = draw(found, category, weights)
                wished = [replace(self._candidate(name, wish, category, own), arm=name) for name in names]
                return self._all(wished, wish, category, own), drawn
        names += sorted(wish.models, key=lambda name: -wish.models[name])  # stable: of equal scores the first listed
        wished = [self._candidate(name, wish, category, own) for name in dict.fromkeys(names)]
        if not wished and not own:
            # There is only default_model, which is to be asked as was wished all the same.
            wished = [self._as_wished(self._default, wish, category)]
        return self._all(wished, wish, category, own), None if wished else drawn

    def _all(
        self, wished: list[Candidate], wish: Overrides, category: str, own: tuple[Candidate, ...]
    ) -> tuple[Candidate, ...]:
        # Where an adapter cannot serve, the category's own take its place as they would have without the wish.
        names = {one.model for one in wished}
        others = [self._as_wished(one, wish, category) for one in own if one.model not in names]
        return (*wished, *(replace(one, arm=None) if wished else one for one in others))

    def _candidate(self, name: str, wish: Overrides, category: str, own: tuple[Candidate, ...]) -> Candidate:
        adapter = None if name in self._bases else name
        same = next((one for one in own if one.adapter == adapter), None)
        candidate = same or Candidate(self._base.served_name if adapter is None else name, adapter)
        if same is None and (configured := self._categories.get(category)) is not None:
            prompt = configured.system_prompt if configured.system_prompt_enabled else None
            candidate = replace(candidate, system_prompt=prompt, system_prompt_mode=configured.system_prompt_mode)
        why = f"the tool asks for it in category {category}"
        return replace(self._as_wished(candidate, wish, category), arm=None, source=why)

    def _as_wished(self, candidate: Candidate, wish: Overrides, category: str) -> Candidate:
        configured = self._categories.get(category)
        if wish.system_prompt is not None and (configured is None or configured.system_prompt_enabled):
            candidate = replace(candidate, system_prompt=wish.system_prompt)
        on, effort = wish.use_reasoning, wish.reasoning_effort
        if on is None and effort is not None:
            on = effort != "none"
        if on is None:
            return candidate
        entry = ModelScore.model_construct(model=self._base.alias, use_reasoning=on, reasoning_effort=effort)
        return replace(candidate, reasoning=self._base.reasoning(entry))
