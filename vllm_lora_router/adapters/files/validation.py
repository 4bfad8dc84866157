"""Validate an adapter's files: whether vLLM can serve the adapter with the base model."""

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.adapters.files.base_compatibility import compare
from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.lora_tensors import (
    pattern_problems,
    rank_problems,
    read_weights,
    scaling_problems,
    tensor_problems,
    unknown_tensor_problems,
)
from vllm_lora_router.adapters.files.module_names import is_expert, last_part
from vllm_lora_router.adapters.files.peft_config import read_settings
from vllm_lora_router.adapters.files.untrusted_file import short_repr

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapter:
    """An adapter that vLLM can serve, according to its files."""

    name: str
    folder: Path
    rank: int  # the smallest `--max-lora-rank` that serves it is at least this
    size_bytes: int  # of its weights file
    elements: int  # of its LoRA tensors
    target_modules: tuple[str, ...]  # the kinds of modules that it changes: "experts", "k_proj", "q_proj"
    warnings: tuple[str, ...]  # effects to know of, and checks that were not possible


class AdapterError(ValueError):
    """The adapter cannot be served; the message names all problems and their remedies."""

    def __init__(self, name: str, folder: Path, problems: Sequence[str]) -> None:
        self.name = name
        self.folder = folder
        self.problems = tuple(problems)
        listed = f" {problems[0]}" if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"adapter {name!r} ({folder}):{listed}")


def validate_adapter(name: str, folder: Path, base: BaseModel, boundary: Path | None = None) -> Adapter:
    """Validate the adapter in `folder` by its configuration and by the header of its weights.

    The weights are not read, so a NaN among them is not detected. The files may be made to harm: time and memory are
    bounded, and every failure is an AdapterError.

    Args:
        boundary: the folder that the real files must be in, after following links; None allows all.

    Raises:
        AdapterError: with all problems of the adapter.
    """
    try:
        return _validate(name, folder, base, boundary)
    except AdapterError:
        raise
    except OSError as error:
        raise AdapterError(name, folder, [f"the folder cannot be read ({error})"]) from error
    except MemoryError:
        # The files' limits keep the memory small, so the machine is short of it, and the adapter is not the cause.
        shortage = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        raise AdapterError(name, folder, [f"the files cannot be examined ({shortage})"]) from shortage
    except Exception as error:
        logger.warning("adapter %s: examining %s failed; the adapter is refused", name, folder, exc_info=True)
        reason = short_repr(str(error))
        raise AdapterError(
            name,
            folder,
            [f"the files cannot be examined ({type(error).__name__}: {reason}); save the adapter with PEFT again"],
        ) from error


def _validate(name: str, folder: Path, base: BaseModel, boundary: Path | None) -> Adapter:
    if problem := _folder_problem(folder):
        raise AdapterError(name, folder, [problem])
    settings, settings_problems = read_settings(folder, boundary)
    weights, weights_problems = read_weights(folder, boundary)
    problems = [*settings_problems, *weights_problems]
    warnings: list[str] = []
    if weights:
        problems += tensor_problems(weights)
        if not settings_problems:
            # A feature that vLLM does not serve adds tensors that vLLM cannot read: report it only once.
            problems += unknown_tensor_problems(weights)
    if settings and weights:
        if slow_patterns := pattern_problems(weights, settings):
            problems += slow_patterns
        else:
            scaling, warnings = scaling_problems(weights, settings)
            problems += [*scaling, *rank_problems(weights, settings)]
        compatibility = compare(weights, settings, base)
        problems += compatibility.problems
        warnings += compatibility.warnings
    if problems or settings is None or weights is None:
        raise AdapterError(name, folder, problems)
    return Adapter(
        name=name,
        folder=folder,
        rank=settings.rank,
        size_bytes=weights.size_bytes,
        elements=weights.elements,
        target_modules=tuple(sorted({_kind(module.name) for module in weights.modules})),
        warnings=tuple(warnings),
    )


def _kind(module: str) -> str:
    return "experts" if is_expert(module) else last_part(module)


def _folder_problem(folder: Path) -> str | None:
    try:
        if folder.is_dir():
            return None
        if folder.exists():
            return "is a file; use the folder that contains adapter_config.json"
    except OSError as error:
        return f"the folder cannot be read ({error})"
    return (
        "the folder does not exist; use the folder that PEFT's save_pretrained wrote, or, in the configuration file, "
        "'hf:organization/name' for an adapter of the Hugging Face hub"
    )
