"""The models to score, and the model that the configuration assigns to each category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.candidates import Candidates
from vllm_lora_router.text import suggest
from vllm_lora_router.tools.prove.endpoint import ProveError, ServedModels


@dataclass(frozen=True)
class Assignments:
    """The models to score, and the configuration's assignment of each category."""

    base: str
    adapters: tuple[str, ...]
    served_by: Mapping[str, str]  # category -> the base or an adapter, which may be none of the scored models
    system_prompts: Mapping[str, str | None]  # category -> the system prompt that routing inserts

    @property
    def models(self) -> tuple[str, ...]:
        """The models to score, the base first."""
        return (self.base, *self.adapters)


def read_assignments(
    loaded: LoadedConfig, base: ServedBase, served: ServedModels, only: Sequence[str] | None = None
) -> Assignments:
    """Return the assignments of a configuration on a server.

    A category is assigned its entry with the highest score for this base; the first entry wins a tie. A category
    without an entry is assigned `default_model`.

    Args:
        only: Adapters to score; None scores every adapter that a category names for this base.

    Raises:
        ProveError: The server does not serve an adapter to score, or routes requests that name the base.
    """
    if loaded.config.router.route_base_model and loaded.config.router.mode == "route":
        raise ProveError(
            f"{loaded.file}: router.route_base_model is true, so requests that name the base are routed; set it to "
            "false while prove runs"
        )
    candidates = Candidates(loaded.config, base)
    first = {name: (*entries, *candidates.default)[0] for name, entries in candidates.by_category.items()}
    named_by: dict[str, str] = {}  # adapter -> the first category that names it
    for category, entries in candidates.by_category.items():
        for candidate in (*entries, *candidates.default):
            if candidate.adapter is not None:
                named_by.setdefault(candidate.adapter, category)
    adapters = list(named_by if only is None else dict.fromkeys(name for name in only if name not in served.bases))
    problems = [
        f"the server does not serve {name!r}{_named_by(named_by.get(name), only)}{suggest(name, served.adapters)}"
        for name in adapters
        if name not in served.adapters
    ]
    if problems:
        names = ", ".join(served.adapters) or "no adapter"
        remedy = "choose adapters with --models" if only is None else "choose others"
        raise ProveError("\n".join([*problems, f"it serves {names}; {remedy}, or serve the missing ones"]))
    return Assignments(
        base.served_name,
        tuple(adapters),
        {name: candidate.model for name, candidate in first.items()},
        {name: candidate.system_prompt for name, candidate in first.items()},
    )


def _named_by(category: str | None, only: Sequence[str] | None) -> str:
    if only is not None:
        return ", named by --models"
    return "" if category is None else f", named by category {category!r}"
