"""Read an adapter's adapter_config.json, and find the settings in it that vLLM refuses."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_lora_router.adapters.files.vllm_limits import ALLOWED_RANKS

CONFIG = "adapter_config.json"

# Initializations that leave the base's weights unchanged (PEFTHelper._init_is_supported in vllm/lora/peft_helper.py).
# The others change the base when PEFT loads the adapter, which vLLM does not do.
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})

# The only whole modules that vLLM takes from an adapter: the heads of classification models.
HEADS = frozenset({"classifier", "score"})

# Features that vLLM refuses (PEFTHelper._validate_features): key, feature, remedy.
UNSUPPORTED = (
    ("use_dora", "DoRA", "train with use_dora=False"),
    ("lora_bias", "biases of LoRA layers", "train with lora_bias=False"),
    ("alora_invocation_tokens", "activated LoRA", "train without alora_invocation_tokens"),
    ("layer_replication", "a base with repeated layers", "train without layer_replication"),
    ("use_bdlora", "block-diagonal LoRA", "train without use_bdlora"),
    ("use_qalora", "QALoRA", "train with use_qalora=False"),
)


@dataclass(frozen=True)
class PeftSettings:
    """The settings of a valid adapter_config.json that vLLM and the router use."""

    r: int
    rank_pattern: Mapping[str, int]
    trained_on: str | None  # the author's name for the base

    @property
    def rank(self) -> int:
        """The largest rank of all modules, which `--max-lora-rank` must allow."""
        return max((self.r, *self.rank_pattern.values()))

    def rank_of(self, module: str) -> int:
        """Return the rank of one module: that of the first entry of `rank_pattern` that ends its name, else `r`."""
        for pattern, rank in self.rank_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return rank
        return self.r


def read_settings(folder: Path) -> tuple[PeftSettings | None, list[str]]:
    """Read the settings of the adapter in `folder`.

    Returns:
        The settings, None if they are invalid; and their problems.
    """
    file = folder / CONFIG
    if not file.exists():
        return None, [f"{CONFIG} is missing; copy all files that PEFT's save_pretrained wrote"]
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return None, [f"{CONFIG} cannot be read ({error})"]
    except ValueError as error:
        return None, [f"{CONFIG} is not JSON ({error}); copy or download it again"]
    if not isinstance(config, dict):
        return None, [f"{CONFIG} is not a JSON object; copy or download it again"]

    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        # The other keys have other meanings than for a LoRA, so they are not checked.
        return None, [f"{CONFIG}: peft_type is {kind!r}, but vLLM serves only LORA adapters; train a LoRA"]
    pattern = config.get("rank_pattern") or {}
    malformed = [*_malformed(config), *_malformed_pattern(pattern)]
    problems = [*malformed, *_unsupported(config)]
    if malformed:
        return None, problems
    trained_on = config.get("base_model_name_or_path")
    settings = PeftSettings(
        r=config["r"],
        rank_pattern=pattern,
        trained_on=str(trained_on) if trained_on else None,
    )
    if settings.rank > ALLOWED_RANKS[-1]:
        problems.append(
            f"rank {settings.rank} is above {ALLOWED_RANKS[-1]}, the largest that vLLM serves; train a smaller rank"
        )
    return settings, problems


def _malformed(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if "r" not in config:
        problems.append(f"{CONFIG}: r, the rank, is missing")
    elif not _is_rank(config["r"]):
        problems.append(f"{CONFIG}: r, the rank, is {config['r']!r}, not a positive integer")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        problems.append(f"{CONFIG}: lora_alpha is {'missing' if alpha is None else repr(alpha)}, vLLM needs a number")
    if "target_modules" not in config:
        problems.append(f"{CONFIG}: target_modules is missing, vLLM needs it")
    return problems


def _malformed_pattern(pattern: object) -> list[str]:
    if not isinstance(pattern, dict):
        return [f"{CONFIG}: rank_pattern is {pattern!r}, not an object of module names and ranks"]
    problems = [
        f"{CONFIG}: rank_pattern gives {key!r} the rank {rank!r}, not a positive integer"
        for key, rank in pattern.items()
        if not _is_rank(rank)
    ]
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            problems.append(f"{CONFIG}: {key!r} in rank_pattern is not a regular expression ({error})")
    return problems


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{CONFIG}: {key} is {config[key]!r}: vLLM does not serve {feature}; {remedy}"
        for key, feature, remedy in UNSUPPORTED
        if config.get(key)
    ]
    if (bias := config.get("bias", "none")) != "none":
        problems.append(f"{CONFIG}: bias is {bias!r}: vLLM does not serve biases of adapters; train with bias='none'")
    saved = config.get("modules_to_save") or []
    saved = [str(module) for module in saved] if isinstance(saved, list) else [str(saved)]
    if others := [module for module in saved if module not in HEADS]:
        problems.append(
            f"{CONFIG}: modules_to_save is {saved!r}: the only whole modules that vLLM takes from an adapter are "
            f"classifier and score; train {', '.join(others)} with target_modules, or not at all"
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        problems.append(
            f"{CONFIG}: init_lora_weights is {init!r}, which changes the base's weights; convert the adapter with "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    return problems


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
