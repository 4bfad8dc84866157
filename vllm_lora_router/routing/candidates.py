"""What serves each category, best first, and what serves everything else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from vllm_lora_router.config.schema import Category, Config, ModelScore
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.ab_assignment import Sticky, draw, order
from vllm_lora_router.routing.mcp_overrides import Wishes
from vllm_lora_router.types import Assignment, Candidate, Overrides


@dataclass(frozen=True)
class Arms:
    """A category's A/B test: its candidates by the name of their arm, and the weight of each."""

    candidates: Mapping[str, Candidate]
    weights: Mapping[str, float]


class Candidates:
    """The candidates of every category, made once for a configuration."""

    def __init__(self, config: Config, base: ServedBase) -> None:
        self.default = (_default(config, base),)
        self._wishes = Wishes(config, base, self.default[0])
        self.by_category: Mapping[str, tuple[Candidate, ...]] = {
            category.name: tuple(_of(category, base)) for category in config.categories
        }
        self.arms: Mapping[str, Arms] = {
            category.name: arms
            for category in config.categories
            if category.selection == "weighted" and (arms := _arms(category, base)) is not None
        }

    def of(
        self, category: str | None, sticky: Callable[[], Sticky], wish: Overrides | None = None
    ) -> tuple[tuple[Candidate, ...], Assignment | None]:
        """The candidates in the order in which they are tried, `default_model` last, and the draw that ordered them.

        Args:
            sticky: what an A/B test goes by; asked only where the category has one.
            wish: what a tool asked for with the category.
        """
        if category is None:
            return self.default, None
        own, draw = self._of_category(category, sticky)
        if wish is not None:
            own, draw = self._wishes.obey(wish, category, own, draw, sticky)
        return (*own, *self.default), draw

    def _of_category(
        self, category: str, sticky: Callable[[], Sticky]
    ) -> tuple[tuple[Candidate, ...], Assignment | None]:
        if (arms := self.arms.get(category)) is None:
            return self.by_category.get(category, ()), None  # a tool may have categories of its own
        found = sticky()
        drawn = tuple(arms.candidates[arm] for arm in order(found.key, category, arms.weights))
        return drawn, draw(found, category, arms.weights)


def _of(category: Category, base: ServedBase) -> list[Candidate]:
    entries = [entry for entry in category.model_scores if entry.model == base.alias]
    entries.sort(key=lambda entry: -entry.score)  # stable: of equal scores the first listed wins
    return [_candidate(entry, category, base) for entry in entries]


def _arms(category: Category, base: ServedBase) -> Arms | None:
    """None where this base has no arm with a weight."""
    candidates: dict[str, Candidate] = {}
    weights: dict[str, float] = {}
    for entry in category.model_scores:
        if entry.model == base.alias:
            name = entry.lora_name or base.alias
            # The same adapter may stand there again, with reasoning say.
            same = sum(one.split("#")[0] == name for one in candidates)
            arm = f"{name}#{same + 1}" if same else name
            why = f"category {category.name}, arm {arm} of weight {entry.score:g}"
            candidates[arm] = replace(_candidate(entry, category, base), arm=arm, source=why)
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


def _default(config: Config, base: ServedBase) -> Candidate:
    # `default_model` may name another server's base: here that is this server's.
    adapter = None if config.default_model in config.bases else config.default_model
    return Candidate(adapter or base.served_name, adapter, source="default_model")
