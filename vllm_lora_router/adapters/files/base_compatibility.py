"""Compare an adapter's tensors with the base model.

vLLM accepts the tensors of an adapter that was trained on a narrower base, and then generates nonsense.
"""

from dataclasses import dataclass

from vllm_lora_router.adapters.files.base_model import BaseModel, Shape
from vllm_lora_router.adapters.files.lora_tensors import LoraModule, Weights
from vllm_lora_router.adapters.files.module_names import describe_module, is_expert, layer_number
from vllm_lora_router.adapters.files.peft_config import PeftSettings

EXAMPLES = 2


@dataclass(frozen=True)
class Compatibility:
    """The result of comparing an adapter with the base."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def compare(weights: Weights, settings: PeftSettings, base: BaseModel) -> Compatibility:
    """Compare every module with the base's module of the same name: whether it exists, and its size."""
    if base.shapes is None:
        warning = f"not compared with the base {base.name!r}: its weights are not on disk as safetensors"
        return Compatibility((), (warning,))
    misfits: list[str] = []
    renamed: list[str] = []
    by_name_only = 0
    experts = 0
    for module in weights.modules:
        if is_expert(module.name):
            experts += 1
            continue
        shapes = base.shapes_of(module.name)
        if not shapes and (shapes := base.shapes_of_renamed(module.name)):
            renamed.append(module.name)
        if not shapes:
            misfits.append(_missing(module, base))
        elif None in shapes or not module.is_complete:
            by_name_only += 1
        elif misfit := _misfit(module, [shape for shape in shapes if shape], base):
            misfits.append(misfit)
    warnings = []
    if experts:
        warnings.append(f"{experts} expert modules were not compared with the base {base.name!r}")
    if renamed:
        warnings.append(
            f"{len(renamed)} modules, such as {renamed[0]!r}, have another name in the base {base.name!r}: vLLM may "
            "skip them or refuse the adapter"
        )
    if by_name_only:
        warnings.append(
            f"{by_name_only} modules were compared with the base {base.name!r} by name only: its weights for them are "
            "packed, fused or not on disk"
        )
    problems = (_other_base(misfits, len(weights.modules), settings, base),) if misfits else ()
    return Compatibility(problems, tuple(warnings))


def _missing(module: LoraModule, base: BaseModel) -> str:
    number = layer_number(module.name)
    if number is not None and base.layers is not None and number >= base.layers:
        return (
            f"{describe_module(module.name)}: the base {base.name!r} has {base.layers} layers (0 to {base.layers - 1})"
        )
    return f"{describe_module(module.name)}: the base {base.name!r} has no {module.name!r}"


def _misfit(module: LoraModule, shapes: list[Shape], base: BaseModel) -> str | None:
    assert module.a is not None and module.b is not None
    inputs, outputs = module.a[1], module.b[0]
    if module.embedding:  # stored as (inputs, outputs): one row per token
        shapes = [(width, vocabulary) for vocabulary, width in shapes]
    if (outputs, inputs) in shapes:
        return None
    base_outputs, base_inputs = shapes[0]
    sides = ((inputs, base_inputs, "inputs"), (outputs, base_outputs, "outputs"))
    differing = [(size, base_size, side) for size, base_size, side in sides if size != base_size]
    expected = " and ".join(f"{size} {side}" for size, _, side in differing)
    actual = " and ".join(str(base_size) for _, base_size, _ in differing)
    return f"{describe_module(module.name)} expects {expected}, the base {base.name!r} has {actual}"


def _other_base(misfits: list[str], modules: int, settings: PeftSettings, base: BaseModel) -> str:
    examples = "; ".join(misfits[:EXAMPLES])
    origin = (
        f"base_model_name_or_path in its adapter_config.json is {settings.trained_on!r}"
        if settings.trained_on
        else "its adapter_config.json does not name the base that it was trained on"
    )
    return (
        f"does not fit the base: {examples} ({len(misfits)} of {modules} modules do not fit); was it trained on "
        f"another base? {origin}; serve it with the base that it was trained on, or train it on {base.name!r}"
    )
