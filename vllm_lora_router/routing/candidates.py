"""What serves each category, best first, and what serves everything else."""

from collections.abc import Mapping

from vllm_lora_router.config.base import ServedBase
from vllm_lora_router.config.schema import Category, Config, ModelScore
from vllm_lora_router.values import Candidate


class Candidates:
    """The candidates of every category, made once for a configuration."""

    def __init__(self, config: Config, base: ServedBase) -> None:
        self.default = (_default(config, base),)
        self.by_category: Mapping[str, tuple[Candidate, ...]] = {
            category.name: (*_of(category, base), *self.default) for category in config.categories
        }

    def of(self, category: str | None) -> tuple[Candidate, ...]:
        """The candidates in the order in which they are tried; `default_model` stands last."""
        return self.default if category is None else self.by_category[category]


def _of(category: Category, base: ServedBase) -> list[Candidate]:
    entries = [entry for entry in category.model_scores if entry.model == base.alias]
    entries.sort(key=lambda entry: -entry.score)  # stable: of equal scores the first listed wins
    return [_candidate(entry, category, base) for entry in entries]


def _candidate(entry: ModelScore, category: Category, base: ServedBase) -> Candidate:
    return Candidate(
        model=entry.lora_name or base.served_name,
        adapter=entry.lora_name,
        reasoning=base.reasoning(entry),
        system_prompt=category.system_prompt if category.system_prompt_enabled else None,
        system_prompt_mode=category.system_prompt_mode,
        why=f"category {category.name}, score {entry.score:g}",
    )


def _default(config: Config, base: ServedBase) -> Candidate:
    # `default_model` may name another server's base: here that is this server's.
    adapter = None if config.default_model in config.bases else config.default_model
    return Candidate(adapter or base.served_name, adapter, why="default_model")
