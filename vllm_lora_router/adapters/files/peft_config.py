"""Read an adapter's adapter_config.json, and find the settings in it that vLLM refuses."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vllm_lora_router.adapters.files.module_patterns import MAX_PATTERNS, ModulePatterns, pattern_problem
from vllm_lora_router.adapters.files.untrusted_file import check_json_size, read_regular, short_repr
from vllm_lora_router.adapters.files.vllm_limits import ALLOWED_RANKS
from vllm_lora_router.coordination.shortage import shortage_of

CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_CONTAINERS = 1000
MAX_CONFIG_MEMBERS = 50_000  # target_modules may list every expert
MAX_BASE_NAME_LENGTH = 200  # of the text that messages show

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
    alpha: float
    use_rslora: bool
    ranks: ModulePatterns
    alphas: ModulePatterns
    trained_on: str | None  # the author's name for the base

    @property
    def rank(self) -> int:
        """The largest rank of all modules, which `--max-lora-rank` must allow."""
        return max((self.r, *map(int, self.ranks.values.values())))

    def rank_of(self, module: str) -> int:
        """Return the rank of one module: that of the first entry of `rank_pattern` that ends its name, else `r`."""
        rank = self.ranks.value_of(module)
        return self.r if rank is None else int(rank)

    def scaling_of(self, module: str) -> float:
        """Return the factor by which vLLM multiplies one module's LoRA (PEFTHelper.get_rank_and_scaling)."""
        alpha, rank = self.alphas.value_of(module), self.rank_of(module)
        alpha = self.alpha if alpha is None else alpha
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_settings(folder: Path, boundary: Path | None = None) -> tuple[PeftSettings | None, list[str]]:
    """Read the settings of the adapter in `folder`.

    Args:
        boundary: the folder that the real file must be in; None allows all.

    Returns:
        The settings, None if they are invalid; and their problems.

    Raises:
        OSError: the file system does not answer.
    """
    try:
        encoded = read_regular(folder / CONFIG, MAX_CONFIG_BYTES, boundary)
        check_json_size(encoded, MAX_CONFIG_CONTAINERS, MAX_CONFIG_MEMBERS)
        config = json.loads(encoded.decode())
    except FileNotFoundError:
        return None, [f"{CONFIG} is missing; copy all files that PEFT's save_pretrained wrote"]
    except OSError as error:
        if shortage := shortage_of(error):
            raise shortage from None
        return None, [f"{CONFIG} cannot be read ({error})"]
    except (ValueError, RecursionError) as error:
        return None, [f"{CONFIG} is not usable JSON ({error}); copy or download it again"]
    if not isinstance(config, dict):
        return None, [f"{CONFIG} is not a JSON object; copy or download it again"]

    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        # The other keys have other meanings than for a LoRA, so they are not checked.
        return None, [f"{CONFIG}: peft_type is {short_repr(kind)}, but vLLM serves only LORA adapters; train a LoRA"]
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    malformed = [*_malformed(config), *_malformed_patterns(ranks, alphas)]
    problems = [*malformed, *_unsupported(config)]
    if malformed:
        return None, problems
    trained_on = config.get("base_model_name_or_path")
    settings = PeftSettings(
        r=config["r"],
        alpha=config["lora_alpha"],
        use_rslora=bool(config.get("use_rslora")),
        ranks=ModulePatterns(ranks),
        alphas=ModulePatterns(alphas),
        trained_on=str(trained_on)[:MAX_BASE_NAME_LENGTH] if trained_on else None,
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
        problems.append(f"{CONFIG}: r, the rank, is {short_repr(config['r'])}, not a positive integer")
    alpha = config.get("lora_alpha")
    if not _is_finite(alpha):
        text = "missing" if alpha is None else short_repr(alpha)
        problems.append(f"{CONFIG}: lora_alpha is {text}, vLLM needs a finite number")
    if not isinstance(rslora := config.get("use_rslora"), bool | None):
        # vLLM takes any text for true, "false" included.
        problems.append(f"{CONFIG}: use_rslora is {short_repr(rslora)}, not true or false")
    if "target_modules" not in config:
        problems.append(f"{CONFIG}: target_modules is missing, vLLM needs it")
    return problems


def _malformed_patterns(ranks: object, alphas: object) -> list[str]:
    problems = []
    patterns: set[str] = set()
    for key, values, is_valid, kind in (
        ("rank_pattern", ranks, _is_rank, "a positive integer"),
        ("alpha_pattern", alphas, _is_finite, "a finite number"),
    ):
        if not isinstance(values, dict):
            problems.append(f"{CONFIG}: {key} is {short_repr(values)}, not an object of module names and numbers")
            continue
        patterns |= values.keys()
        invalid = (
            f"{CONFIG}: {key} gives {short_repr(pattern)} the value {short_repr(value)}, not {kind}"
            for pattern, value in values.items()
            if not is_valid(value)
        )
        problems += islice(invalid, 1)
        refused = (problem for pattern in islice(values, MAX_PATTERNS) if (problem := pattern_problem(pattern)))
        problems += [f"{CONFIG}: {key}: {problem}" for problem in islice(refused, 1)]
    if len(patterns) > MAX_PATTERNS:
        problems.append(
            f"{CONFIG}: rank_pattern and alpha_pattern have {len(patterns):,} different keys, but vLLM needs too long "
            f"for more than {MAX_PATTERNS}; combine them, such as '(q|k)_proj' for two modules"
        )
    return problems


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{CONFIG}: {key} is {short_repr(config[key])}: vLLM does not serve {feature}; {remedy}"
        for key, feature, remedy in UNSUPPORTED
        if config.get(key)
    ]
    if (bias := config.get("bias", "none")) != "none":
        problems.append(
            f"{CONFIG}: bias is {short_repr(bias)}: vLLM does not serve biases of adapters; train with bias='none'"
        )
    saved = config.get("modules_to_save") or []
    # vLLM would read a text as a list of its letters.
    if not isinstance(saved, list) or any(module not in HEADS for module in map(str, saved)):
        problems.append(
            f"{CONFIG}: modules_to_save is {short_repr(saved)}, not a list of classifier and score, the only whole "
            "modules that vLLM takes from an adapter; train other modules with target_modules, or not at all"
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        problems.append(
            f"{CONFIG}: init_lora_weights is {short_repr(init)}, which changes the base's weights; convert the adapter "
            "with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    return problems


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_finite(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
        return False
