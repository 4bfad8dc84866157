"""Selection of a model's runtime: torch or ONNX Runtime."""

from collections.abc import Callable

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import TextModel, onnx_runtime
from vllm_lora_router.classifiers.models.pytorch import LOAD_LOCK
from vllm_lora_router.config.schema import Runtime


def load_model(
    place: str,
    kind: onnx_runtime.ModelKind,
    source: str,
    runtime: Runtime,
    device: str,
    load_torch: Callable[[], TextModel],
    threads: int = 1,
) -> TextModel:
    """Load a model with the configured runtime.

    Args:
        place: The model's settings, for error messages.
        source: A folder or a hub id.
        device: A torch device.
        load_torch: Loads the model with torch.
        threads: Number of CPU cores that ONNX Runtime may use. For torch, the worker thread sets this limit.

    Raises:
        ClassifierError: The runtime is not installed, or it cannot run the model or does not support the device.
    """
    if runtime == "torch":
        with LOAD_LOCK:
            return load_torch()
    check_runtime(place, runtime, device)
    try:
        return onnx_runtime.load(kind, source, int8=runtime == "onnx-int8", threads=threads)
    except ClassifierError as error:
        raise ClassifierError(f"{place}.runtime: {error}") from None


def check_runtime(place: str, runtime: Runtime, device: str) -> None:
    """Check a runtime without loading a model.

    Raises:
        ClassifierError: The runtime is not installed or does not support the device.
    """
    if runtime == "torch":
        return
    if device not in ("cpu", "auto"):
        raise ClassifierError(f"{place}.runtime: {runtime} runs only on the CPU, not on {device}; set device: cpu")
    if problem := onnx_runtime.missing_packages():
        raise ClassifierError(f"{place}.runtime: {runtime} {problem}")
