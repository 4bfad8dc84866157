"""Estimate the memory of adapters, slots and the base model, in bytes."""

from collections.abc import Iterator

from vllm_lora_router.adapters.files.base_model import INDEX, WEIGHTS, BaseModel, Shape, read_json
from vllm_lora_router.adapters.files.module_names import is_expert, last_part, layer_number
from vllm_lora_router.adapters.files.validation import Adapter

# vLLM keeps adapters in `--lora-dtype`, by default the model's own: float16 or bfloat16, also for a float32 checkpoint.
ELEMENT_BYTES = 2

# Modules with these words in their names are not part of the language model, the only part that adapters change.
OTHER_PARTS = ("visual", "vision", "image", "audio", "speech", "projector", "mtp")


def adapter_bytes(adapter: Adapter, element_bytes: int = ELEMENT_BYTES) -> int:
    """Return the host memory of `adapter` in bytes. Each worker of the engine keeps a whole copy of it.

    This is the number of elements of its LoRA tensors times the size of an element in vLLM's dtype, which may differ
    from the file's. An adapter of q and v alone needs no memory for k: vLLM packs the three as a list with a gap
    (`PackedLoRALayerWeights.pack`) and fills in zeros only on the device. The figure leaves out two effects: with a GPU
    the tensors are pinned, and PyTorch rounds each up to a power of two, at worst to twice its size; and with expert
    parallelism a worker keeps only its own experts.
    """
    return adapter.elements * element_bytes


def slot_bytes(base: BaseModel, rank: int, element_bytes: int = ELEMENT_BYTES) -> int | None:
    """Return the device memory of one slot of `--max-loras` in bytes, at most, with a `--max-lora-rank` of `rank`.

    vLLM allocates it at startup, with or without adapters, for every linear layer of the language model, for the
    embedding and for the head: rank x (inputs + outputs) elements each (`create_lora_weights` in `vllm/lora/layers`).

    The real figure is smaller for a model whose embedding and head vLLM leaves out (Qwen2, Mistral and Gemma, but not
    Llama and Qwen3), with `--lora-target-modules`, and with tensor or pipeline parallelism, which divide a part of it.
    It is larger with `--enable-tower-connector-lora`.

    Returns:
        None if the base's shapes are not on disk, packed or stacked.
    """
    shapes = _language_model(base)
    return None if shapes is None else rank * element_bytes * sum(inputs + outputs for outputs, inputs in shapes)


def base_bytes(base: BaseModel) -> int | None:
    """Return the size of the base's weight files, about its device memory; None if not all files are on disk."""
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
        elif is_expert(module) or last_part(module).endswith("proj"):
            return None
    return shapes if in_layers else None


def _modules(base: BaseModel) -> Iterator[tuple[str, Shape | None]]:
    for module, shape in (base.shapes or {}).items():
        number = layer_number(module)
        # Layers after the last one predict further tokens: vLLM loads them only for speculation, without adapters.
        is_after_last = number is not None and base.layers is not None and number >= base.layers
        if not is_after_last and not any(word in module for word in OTHER_PARTS):
            yield module, shape


def _weight_files(base: BaseModel) -> set[str]:
    assert base.folder is not None
    index = read_json(base.folder / INDEX).get("weight_map")
    return {file for file in index.values() if isinstance(file, str)} if isinstance(index, dict) else {WEIGHTS}
