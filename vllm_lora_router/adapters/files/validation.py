"""Whether a declared adapter can be served over the base, before the engine sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.adapters.files.base_compatibility import compare
from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.lora_tensors import faults, rank_faults, read_weights, unknown_faults
from vllm_lora_router.adapters.files.module_names import is_expert, last
from vllm_lora_router.adapters.files.peft_config import read_settings


@dataclass(frozen=True)
class Adapter:
    """An adapter that vLLM can serve, as far as its files tell."""

    name: str
    folder: Path
    rank: int  # what `--max-lora-rank` must allow
    size_bytes: int  # of its weights file
    elements: int  # numbers in its LoRA tensors
    target_modules: tuple[str, ...]  # the kinds of modules it changes: "experts", "k_proj", "q_proj"
    warnings: tuple[str, ...]  # what could not be checked


class AdapterError(ValueError):
    """An adapter that cannot be served. The message says all that is wrong with it and what to do."""

    def __init__(self, name: str, folder: Path, problems: Sequence[str]) -> None:
        self.name = name
        self.folder = folder
        self.problems = tuple(problems)
        listed = f" {problems[0]}" if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"adapter {name!r} ({folder}):{listed}")


def check(name: str, folder: Path, base: BaseModel) -> Adapter:
    """The adapter called `name` in `folder`, found fit for `base` by its configuration and the header of its weights.

    Raises AdapterError with every problem at once. Weights are not read: a NaN among them goes unseen.
    """
    if problem := _folder_problem(folder):
        raise AdapterError(name, folder, [problem])
    try:
        settings, refused = read_settings(folder)
        weights, damaged = read_weights(folder)
    except OSError as error:
        raise AdapterError(name, folder, [f"the folder cannot be read ({error})"]) from error

    problems = [*refused, *damaged]
    warnings: tuple[str, ...] = ()
    if weights:
        problems += faults(weights)
        if not refused:
            # A feature that vLLM refuses brings tensors that it cannot read: one reason is enough.
            problems += unknown_faults(weights)
    if settings and weights:
        fit = compare(weights, settings, base)
        problems += [*rank_faults(weights, settings), *fit.problems]
        warnings = fit.warnings
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
    return "experts" if is_expert(module) else last(module)


def _folder_problem(folder: Path) -> str | None:
    try:
        if folder.is_dir():
            return None
        if folder.exists():
            return "is a file; give the folder that contains adapter_config.json"
    except OSError as error:
        return f"the folder cannot be read ({error})"
    return (
        "the folder does not exist; give the folder that PEFT's save_pretrained wrote (an adapter on the Hugging Face "
        "hub must be downloaded first: 'hf download ID --local-dir FOLDER')"
    )
