"""Which key under `model_config` is the model that is served, and what it is told about reasoning."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.presets import REASONING_FAMILIES
from vllm_lora_router.config.schema import ModelScore, ReasoningFamily
from vllm_lora_router.config.yaml_document import ConfigError
from vllm_lora_router.types import Reasoning


@dataclass(frozen=True)
class ServedBase:
    """The base model of this server: its key in the file is an alias of the name that vLLM serves it under."""

    alias: str
    served_name: str
    family_name: str | None
    family: ReasoningFamily | None  # None: nothing is written about reasoning
    default_effort: str

    def reasoning(self, entry: ModelScore) -> Reasoning | None:
        """What an entry's `use_reasoning` and `reasoning_effort` mean for this model."""
        if self.family is None or entry.use_reasoning is None:
            return None
        if self.family.type == "chat_template_kwargs":
            return Reasoning(entry.use_reasoning, template_kwargs={self.family.parameter: entry.use_reasoning})
        if not entry.use_reasoning:
            return None  # such a model always reasons; without an effort it does so as it does by default
        effort = entry.reasoning_effort or self.default_effort
        return Reasoning(effort != "none", effort=effort)


def served_base(loaded: Loaded, served_names: Sequence[str] = ()) -> ServedBase:
    """The base that the server's name points to; without a server, the one that `default_model` names, or the first.

    Raises:
        ConfigError: several bases are configured and none has the served name or its last path part.
    """
    config = loaded.config
    wanted = [*served_names, *(name.rstrip("/").rpartition("/")[2] for name in served_names)]
    if not served_names:
        default = config.default_model
        wanted = [name for name, base in config.bases.items() if default in (name, *(lora.name for lora in base.loras))]
    alias = next((name for name in wanted if name in config.bases), None)
    if alias is None:
        if served_names and len(config.bases) > 1:
            text = (
                f"none of {', '.join(map(repr, config.bases))} is the served model {served_names[0]!r}; name the key "
                f"{wanted[-1]!r}, or serve with --served-model-name"
            )
            raise ConfigError([loaded.document.problem(("model_config",), text, at_key=True)])
        alias = next(iter(config.bases))
    family_name = config.bases[alias].reasoning_family
    family = {**REASONING_FAMILIES, **config.reasoning_families}.get(family_name or "")
    name = served_names[0] if served_names else alias
    return ServedBase(alias, name, family_name, family, config.default_reasoning_effort)
