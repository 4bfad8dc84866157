"""Which runtime a model gets."""

from collections.abc import Callable

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import Network, onnx_runtime
from vllm_lora_router.classifiers.models.pytorch import LOAD_LOCK
from vllm_lora_router.config.schema import Runtime


def load_network(
    place: str,
    kind: onnx_runtime.Kind,
    source: str,
    runtime: Runtime,
    device: str,
    load_torch: Callable[[], Network],
    threads: int = 1,
) -> Network:
    """The model by the runtime that was asked for.

    Args:
        place: the model's settings, for messages.
        source: a folder or a hub id.
        device: a torch device.
        threads: how many cores it may use on a CPU; torch is told by the thread that runs the model.

    Raises:
        ClassifierError: that runtime is not installed, cannot run the model, or not on this device.
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
    """Without loading anything.

    Raises:
        ClassifierError: the runtime is not installed, or not one for this device.
    """
    if runtime == "torch":
        return
    if device not in ("cpu", "auto"):
        raise ClassifierError(f"{place}.runtime: {runtime} runs on the CPU alone, not on {device}: set device: cpu")
    if problem := onnx_runtime.missing():
        raise ClassifierError(f"{place}.runtime: {runtime} {problem}")
