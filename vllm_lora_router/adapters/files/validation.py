"""Validate an adapter's files: whether vLLM can serve the adapter with the base model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.adapters.files.base_compatibility import compare
from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.lora_tensors import (
    rank_problems,
    read_weights,
    tensor_problems,
    unknown_tensor_problems,
)
from vllm_lora_router.adapters.files.module_names import is_expert, last_part
from vllm_lora_router.adapters.files.peft_config import read_settings


@dataclass(frozen=True)
class Adapter:
    """An adapter that vLLM can serve, according to its files."""

    name: str
    folder: Path
    rank: int  # the smallest `--max-lora-rank` that serves it is at least this
    size_bytes: int  # of its weights file
    elements: int  # of its LoRA tensors
    target_modules: tuple[str, ...]  # the kinds of modules that it changes: "experts", "k_proj", "q_proj"
    warnings: tuple[str, ...]  # checks that were not possible


class AdapterError(ValueError):
    """The adapter cannot be served; the message names all problems and their remedies."""

    def __init__(self, name: str, folder: Path, problems: Sequence[str]) -> None:
        self.name = name
        self.folder = folder
        self.problems = tuple(problems)
        listed = f" {problems[0]}" if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"adapter {name!r} ({folder}):{listed}")


def validate_adapter(name: str, folder: Path, base: BaseModel) -> Adapter:
    """Validate the adapter in `folder` by its configuration and by the header of its weights.

    The weights are not read, so a NaN among them is not detected.

    Raises:
        AdapterError: with all problems of the adapter.
    """
    if problem := _folder_problem(folder):
        raise AdapterError(name, folder, [problem])
    try:
        settings, settings_problems = read_settings(folder)
        weights, weights_problems = read_weights(folder)
    except OSError as error:
        raise AdapterError(name, folder, [f"the folder cannot be read ({error})"]) from error

    problems = [*settings_problems, *weights_problems]
    warnings: tuple[str, ...] = ()
    if weights:
        problems += tensor_problems(weights)
        if not settings_problems:
            # A feature that vLLM does not serve adds tensors that vLLM cannot read: report it only once.
            problems += unknown_tensor_problems(weights)
    if settings and weights:
        compatibility = compare(weights, settings, base)
        problems += [*rank_problems(weights, settings), *compatibility.problems]
        warnings = compatibility.warnings
    if problems or settings is None or weights is None:
        raise AdapterError(name, folder, problems)
    return Adapter(
        name=name,
        folder=folder,
        rank=settings.rank,
        size_bytes=weights.size_bytes,
        elements=weights.elements,
        target_modules=tuple(sorted({_kind(module.name) for module in weights.modules})),
        warnings=warnings,
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
        "the folder does not exist; use the folder that PEFT's save_pretrained wrote (download an adapter from the "
        "Hugging Face hub first: 'hf download ID --local-dir FOLDER')"
    )
