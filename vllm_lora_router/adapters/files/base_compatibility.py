"""Whether an adapter's tensors fit the base's: vLLM takes those of a narrower base and answers nonsense."""

from dataclasses import dataclass

from vllm_lora_router.adapters.files.base_model import BaseModel, Shape
from vllm_lora_router.adapters.files.lora_tensors import LoraModule, Weights
from vllm_lora_router.adapters.files.module_names import in_words, is_expert, layer_number
from vllm_lora_router.adapters.files.peft_config import Settings

EXAMPLES = 2


@dataclass(frozen=True)
class Fit:
    """What comparing an adapter with the base gave."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def compare(weights: Weights, settings: Settings, base: BaseModel) -> Fit:
    """Compares every module with the base's module of that name, by presence and by size."""
    if base.shapes is None:
        return Fit((), (f"not compared with the base {base.name!r}: its weights are not on disk as safetensors",))
    misfits: list[str] = []
    renamed: list[str] = []
    by_name_only = 0
    experts = 0
    for module in weights.modules:
        if is_expert(module.name):
            experts += 1
            continue
        shapes = base.candidates(module.name)
        if not shapes and (shapes := base.under_another_name(module.name)):
            renamed.append(module.name)
        if not shapes:
            misfits.append(_absent(module, base))
        elif None in shapes or not module.is_whole:
            by_name_only += 1
        elif misfit := _misfit(module, [shape for shape in shapes if shape], base):
            misfits.append(misfit)
    warnings = []
    if experts:
        warnings.append(f"{experts} expert modules were not compared with the base {base.name!r}")
    if renamed:
        warnings.append(
            f"{len(renamed)} modules, such as {renamed[0]!r}, go by another name in the base {base.name!r}: vLLM may "
            "leave them out or refuse the adapter"
        )
    if by_name_only:
        warnings.append(
            f"{by_name_only} modules were compared with the base {base.name!r} by name only: its weights there are "
            "packed, fused or not on disk"
        )
    problems = (_made_for_another(misfits, len(weights.modules), settings, base),) if misfits else ()
    return Fit(problems, tuple(warnings))


def _absent(module: LoraModule, base: BaseModel) -> str:
    number = layer_number(module.name)
    if number is not None and base.layers is not None and number >= base.layers:
        return f"{in_words(module.name)}: the base {base.name!r} has {base.layers} layers (0 to {base.layers - 1})"
    return f"{in_words(module.name)}: the base {base.name!r} has no {module.name!r}"


def _misfit(module: LoraModule, shapes: list[Shape], base: BaseModel) -> str | None:
    assert module.a is not None and module.b is not None
    inputs, outputs = module.a[1], module.b[0]
    if module.embedding:  # stored as (inputs, outputs): a row a token
        shapes = [(width, vocabulary) for vocabulary, width in shapes]
    if (outputs, inputs) in shapes:
        return None
    base_outputs, base_inputs = shapes[0]
    sides = ((inputs, base_inputs, "inputs"), (outputs, base_outputs, "outputs"))
    pairs = [(own, other, what) for own, other, what in sides if own != other]
    expected = " and ".join(f"{own} {what}" for own, _, what in pairs)
    there = " and ".join(str(other) for _, other, _ in pairs)
    return f"{in_words(module.name)} expects {expected}, the base {base.name!r} has {there}"


def _made_for_another(misfits: list[str], modules: int, settings: Settings, base: BaseModel) -> str:
    examples = "; ".join(misfits[:EXAMPLES])
    origin = (
        f"its adapter_config.json says base_model_name_or_path {settings.trained_on!r}"
        if settings.trained_on
        else "its adapter_config.json does not name the base it was trained on"
    )
    return (
        f"does not fit the base: {examples} ({len(misfits)} of {modules} modules do not fit); made for another base? "
        f"{origin}; serve it over the base it was trained on, or train it on {base.name!r}"
    )
