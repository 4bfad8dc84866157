"""Find the base model of the server under `model_config`, and translate its reasoning settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_lora_router.config.adapter_names import invalid_name_reason
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.schema import ModelScore, ReasoningFamily
from vllm_lora_router.config.yaml_document import ConfigError
from vllm_lora_router.types import Reasoning

# Reasoning families that need no definition: the switch or effort of each model family's chat template or parser.
REASONING_FAMILIES: Mapping[str, ReasoningFamily] = {
    "qwen3": ReasoningFamily(type="chat_template_kwargs", parameter="enable_thinking"),
    "deepseek": ReasoningFamily(type="chat_template_kwargs", parameter="thinking"),
    "gpt-oss": ReasoningFamily(type="reasoning_effort", parameter="reasoning_effort"),
    "gpt": ReasoningFamily(type="reasoning_effort", parameter="reasoning_effort"),
}


@dataclass(frozen=True)
class ServedBase:
    """The base model of this server. Its key in the file is an alias of the name that vLLM serves it under."""

    alias: str
    served_name: str
    family_name: str | None
    family: ReasoningFamily | None  # None: nothing is written about reasoning
    default_effort: str

    def reasoning(self, entry: ModelScore) -> Reasoning | None:
        """Return what an entry's `use_reasoning` and `reasoning_effort` mean for this model; None: write nothing."""
        if self.family is None or entry.use_reasoning is None:
            return None
        if self.family.type == "chat_template_kwargs":
            return Reasoning(entry.use_reasoning, template_kwargs={self.family.parameter: entry.use_reasoning})
        if not entry.use_reasoning:
            return None  # such a model always reasons; without an effort its own default applies
        effort = entry.reasoning_effort or self.default_effort
        return Reasoning(effort != "none", effort=effort)


def served_base(loaded: LoadedConfig, served_names: Sequence[str] = ()) -> ServedBase:
    """Return the base that a server with these names serves.

    Args:
        served_names: vLLM's served model names. Without any (there is no server), the result is the base that
            `default_model` names or belongs to, or else the first base.

    Raises:
        ConfigError: several bases are configured, and none has a served name or the last path part of one; or an
            adapter has a served name.
    """
    config = loaded.config
    candidates = [*served_names, *(name.rstrip("/").rpartition("/")[2] for name in served_names)]
    if not served_names:
        default = config.default_model
        candidates = [
            name for name, base in config.bases.items() if default in (name, *(lora.name for lora in base.loras))
        ]
    alias = next((name for name in candidates if name in config.bases), None)
    if alias is None:
        if served_names and len(config.bases) > 1:
            text = (
                f"none of {', '.join(map(repr, config.bases))} is the served model {served_names[0]!r}; rename a "
                f"key to {candidates[-1]!r}, or serve with --served-model-name"
            )
            raise ConfigError([loaded.document.problem(("model_config",), text, at_key=True)])
        alias = next(iter(config.bases))
    problems = [
        loaded.document.problem(("model_config", alias, "loras", index, "name"), reason)
        for index, lora in enumerate(config.bases[alias].loras)
        if (reason := invalid_name_reason(lora.name, served_names, ()))
    ]
    if problems:
        raise ConfigError(problems)
    family_name = config.bases[alias].reasoning_family
    family = {**REASONING_FAMILIES, **config.reasoning_families}.get(family_name or "")
    name = served_names[0] if served_names else alias
    return ServedBase(alias, name, family_name, family, config.default_reasoning_effort)
