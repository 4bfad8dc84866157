"""What adapters take in memory, and what the base takes. All figures are bytes."""

import json
from collections.abc import Iterator

from vllm_lora_router.adapters.files.base_model import INDEX, WEIGHTS, BaseModel, Shape
from vllm_lora_router.adapters.files.module_names import is_expert, last, layer_number
from vllm_lora_router.adapters.files.validation import Adapter

# vLLM keeps adapters in `--lora-dtype`, by default the model's own: float16 or bfloat16, also for a float32 checkpoint.
ELEMENT_BYTES = 2

# What these words name is no part of the language model, and adapters change that alone.
OTHER_PARTS = ("visual", "vision", "image", "audio", "speech", "projector", "mtp")


def adapter_bytes(adapter: Adapter, element_bytes: int = ELEMENT_BYTES) -> int:
    """What `adapter` takes in host memory, where each worker of the engine keeps a whole copy of it.

    The elements of its LoRA tensors in the dtype that vLLM converts them to, whatever the file has. An adapter of q
    and v alone takes no more for k: vLLM packs the three as a list with a gap (`PackedLoRALayerWeights.pack`) and fills
    in zeros on the device only. Two things are left out: with a GPU the tensors are pinned, and PyTorch rounds each up
    to a power of two, at worst to twice its size; and with expert parallelism a worker keeps its own experts alone.
    """
    return adapter.elements * element_bytes


def slot_bytes(base: BaseModel, rank: int, element_bytes: int = ELEMENT_BYTES) -> int | None:
    """What one slot of `--max-loras` takes on the device with a `--max-lora-rank` of `rank`, at most.

    vLLM allocates it at the start, whether or not an adapter comes, for every linear layer of the language model, for
    the embedding and for the head: rank x (inputs + outputs) elements each (`create_lora_weights` in
    `vllm/lora/layers`). None where the base's shapes are not on disk, packed or stacked.

    It is less than this with a model whose embedding and head vLLM leaves out (Qwen2, Mistral and Gemma, but not
    Llama and Qwen3), with `--lora-target-modules`, and with tensor or pipeline parallelism, which divide a part of it;
    it is more with `--enable-tower-connector-lora`.
    """
    shapes = _language_model(base)
    return None if shapes is None else rank * element_bytes * sum(inputs + outputs for outputs, inputs in shapes)


def base_bytes(base: BaseModel) -> int | None:
    """The weight files of the base, about what it takes on the device; None where not all of them are on disk."""
    if base.folder is None:
        return None
    try:
        return sum((base.folder / file).stat().st_size for file in _weight_files(base))
    except OSError:
        return None


def _language_model(base: BaseModel) -> list[Shape] | None:
    shapes: list[Shape] = []
    in_layers = False
    for module, shape in _modules(base):
        if shape is not None:
            shapes.append(shape)
            in_layers |= layer_number(module) is not None
        elif is_expert(module) or last(module).endswith("proj"):
            return None
    return shapes if in_layers else None


def _modules(base: BaseModel) -> Iterator[tuple[str, Shape | None]]:
    for module, shape in (base.shapes or {}).items():
        number = layer_number(module)
        # Layers after the last one predict further tokens: vLLM loads them for speculation alone, without adapters.
        after_the_last = number is not None and base.layers is not None and number >= base.layers
        if not after_the_last and not any(word in module for word in OTHER_PARTS):
            yield module, shape


def _weight_files(base: BaseModel) -> set[str]:
    assert base.folder is not None
    try:
        return set(json.loads((base.folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError):
        return {WEIGHTS}
