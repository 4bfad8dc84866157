"""Which models are asked, and which of them serves each category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_lora_router.config import Loaded
from vllm_lora_router.config.cross_checks import suggest
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.candidates import Candidates
from vllm_lora_router.tools.prove.endpoint import ProofError, Served


@dataclass(frozen=True)
class Assigned:
    """The models that are asked, the base first, and what the configuration says of each category."""

    base: str
    adapters: tuple[str, ...]
    served_by: Mapping[str, str]  # category -> the base or an adapter, asked or not
    system_prompts: Mapping[str, str | None]  # category -> what routing puts before its prompts

    @property
    def models(self) -> tuple[str, ...]:
        return (self.base, *self.adapters)


def assigned(loaded: Loaded, base: ServedBase, served: Served, only: Sequence[str] | None = None) -> Assigned:
    """What the configuration has for its categories on this server.

    A category is served by its entry with the highest score for this base, of equal ones the first listed, and by
    `default_model` where it has none.

    Args:
        only: adapters to ask; None: all that a category names for this base.

    Raises:
        ProofError: the server does not serve an adapter that is to be asked, or routes requests that name the base.
    """
    if loaded.config.router.route_base_model and loaded.config.router.mode == "route":
        raise ProofError(
            f"{loaded.file}: router.route_base_model is true, so the base cannot be asked by its name; set it to false "
            "while you prove"
        )
    candidates = Candidates(loaded.config, base)
    own = {name: (*found, *candidates.default)[0] for name, found in candidates.by_category.items()}
    named_by: dict[str, str] = {}
    for category, found in candidates.by_category.items():
        for candidate in (*found, *candidates.default):
            if candidate.adapter is not None:
                named_by.setdefault(candidate.adapter, category)
    wanted = list(named_by if only is None else dict.fromkeys(name for name in only if name not in served.bases))
    problems = [
        f"the server does not serve {name!r}{_whose(named_by.get(name), only)}{suggest(name, served.adapters)}"
        for name in wanted
        if name not in served.adapters
    ]
    if problems:
        has = ", ".join(served.adapters) or "no adapter"
        way = "name those to ask with --models" if only is None else "name others"
        raise ProofError("\n".join([*problems, f"it serves {has}; {way}, or serve what is missing"]))
    return Assigned(
        base.served_name,
        tuple(wanted),
        {name: candidate.model for name, candidate in own.items()},
        {name: candidate.system_prompt for name, candidate in own.items()},
    )


def _whose(category: str | None, only: Sequence[str] | None) -> str:
    if only is not None:
        return ", which --models names"
    return "" if category is None else f", which category {category!r} names"
