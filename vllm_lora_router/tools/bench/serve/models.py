"""Provide the base model, its adapters and the classifier of a benchmark, building what is missing."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.tools.bench.serve import shapes
from vllm_lora_router.tools.bench.serve.random_adapters import write_adapter
from vllm_lora_router.tools.bench.serve.settings import SUBJECTS, Classifier
from vllm_lora_router.tools.demo.build import build
from vllm_lora_router.tools.demo.many import ManyAdapters
from vllm_lora_router.tools.demo.server import FLAGS

DEMO = "demo"
RANK = 16
_STATIC = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class BaseWithAdapters:
    """A base model and adapters for it."""

    base: str  # a folder or a hub id
    adapters: Mapping[str, Path]
    flags: Sequence[str]  # vLLM flags that this base model needs
    write: Callable[[int, Path], None]  # (number, folder): write one more adapter


def base_with_adapters(base: str, directory: Path) -> BaseWithAdapters:
    """Return the named base model with an adapter for each category.

    Args:
        base: `DEMO`, a name in `shapes.SHAPES` (random weights), or the folder or hub id of a model.
        directory: folder for the models that are built.

    Raises:
        AnswerTrainingError, DomainModelError: a model of the demo failed its check.
    """
    if base == DEMO:
        demo = build(directory)
        return BaseWithAdapters(
            str(demo.base), {name: demo.adapters[name] for name in SUBJECTS}, FLAGS, ManyAdapters(demo.base).write
        )
    if base in shapes.SHAPES:
        folder = directory / "shapes" / base
        shapes.write_base(base, folder)
        flags = shapes.FLAGS
    else:
        folder, flags = _folder(base), ()

    def write(number: int, to: Path) -> None:
        write_adapter(folder, to, RANK, number)

    adapters = {name: directory / "random" / folder.name / name for name in SUBJECTS}
    for number, to in enumerate(adapters.values()):
        if not (to / "adapter_config.json").exists():
            write(number, to)
    return BaseWithAdapters(str(folder), adapters, flags, write)


def classifier_folder(classifier: Classifier, directory: Path) -> Path | None:
    """Return the classifier's folder, or None for the default of `classifier.embedding_model`.

    Raises:
        DistillError, DomainModelError: the classifier cannot be built.
    """
    if classifier == "domain":
        return build(directory).domain
    if classifier == "MiniLM":
        return None
    folder = directory / "models" / "static"
    if not folder.exists():
        from vllm_lora_router.tools.fit.distill import distill

        draft = folder.with_name(".static")
        shutil.rmtree(draft, ignore_errors=True)
        distill(_STATIC, draft)
        draft.rename(folder)
    return folder


def _folder(base: str) -> Path:
    if Path(base).is_dir():
        return Path(base).resolve()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(base))
