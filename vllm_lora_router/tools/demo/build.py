"""Build the demo's models on first use: base model, adapters and domain model."""

import argparse
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from vllm_lora_router.tools.demo import adapters, base, domain
from vllm_lora_router.tools.demo.answers import ADAPTERS

# The path of the domain model in the guide's configuration.
DOMAIN = "models/category_classifier_modernbert-base_model"
_STAMP = ".recipe"

Train = Callable[[Path, Callable[[], None]], None]  # (output folder, function called after each step)


@dataclass(frozen=True)
class DemoModels:
    """The folders of the demo's models."""

    directory: Path
    base: Path
    adapters: Mapping[str, Path]
    domain: Path


def build(directory: Path, *, seed: int = 0) -> DemoModels:
    """Build the models that are missing in `directory` or were built by another recipe, with a progress display.

    Raises:
        TeachingError, DomainModelError: a model failed its check after training, or its training data is not installed.
    """
    models = DemoModels(
        directory=directory,
        base=directory / "base",
        adapters={recipe.name: directory / "adapters" / recipe.name for recipe in ADAPTERS},
        domain=directory / DOMAIN,
    )
    steps: list[tuple[str, Path, int, Train]] = [
        ("base model", models.base, base.STEPS, lambda to, tick: base.train_base(to, seed=seed, advance=tick)),
        *(
            (
                recipe.name,
                models.adapters[recipe.name],
                adapters.STEPS,
                lambda to, tick, recipe=recipe: adapters.train_adapter(models.base, to, recipe, advance=tick),
            )
            for recipe in ADAPTERS
        ),
        (
            "domain model",
            models.domain,
            domain.STEPS,
            lambda to, tick: domain.train_domain(to, seed=seed, advance=tick),
        ),
    ]
    recipe = _recipe(seed)
    if all(_is_built(folder, recipe) for _, folder, _, _ in steps):
        return models
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # only one of several processes builds
        missing = [step for step in steps if not _is_built(step[1], recipe)]
        _silence_libraries()
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), transient=True
        ) as progress:
            tasks = [progress.add_task(f"building the {name}", total=total) for name, _, total, _ in missing]
            for task, (_, folder, _, train) in zip(tasks, missing, strict=True):
                _write_atomically(
                    folder, recipe, lambda to, task=task, train=train: train(to, lambda: progress.advance(task))
                )
    return models


def _write_atomically(folder: Path, recipe: str, write: Callable[[Path], None]) -> None:
    """Write a folder under a temporary name and rename it when it is complete."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        write(draft)
        (draft / _STAMP).write_text(recipe)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_built(folder: Path, recipe: str) -> bool:
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text() == recipe


def _recipe(seed: int) -> str:
    """Return a digest of the training code, the seed and the libraries' minor versions."""
    names = ("adapters", "answers", "base", "build", "domain", "held_out", "questions", "answer_training", "tokenizer")
    folder = Path(__file__).parent
    sources = b"".join((folder / f"{name}.py").read_bytes() for name in names)
    libraries = [".".join(version(name).split(".")[:2]) for name in ("torch", "transformers", "peft")]
    return hashlib.sha256(sources + repr((seed, libraries)).encode()).hexdigest()


def _silence_libraries() -> None:
    """Disable the libraries' progress bars and warnings."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft")


def main() -> int:
    """Build the models into a folder and print their locations."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.demo.build", description=__doc__)
    parser.add_argument("directory", type=Path, help="folder for the models")
    models = build(parser.parse_args().directory.resolve())
    for name, folder in {"base": models.base, **models.adapters, "domain model": models.domain}.items():
        print(f"{name}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
