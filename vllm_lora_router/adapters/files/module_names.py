"""Parse and describe the names of a model's modules."""

import re

NUMBERED = re.compile(r"(?:^|\.)([^.]+\.\d+(?:\..+)?)$")


def stable_suffix(module: str) -> str:
    """Return the part of a name that is the same in all versions of transformers.

    It starts at the layer, or is the last part if there is no layer: "layers.0.self_attn.q_proj" of
    "model.language_model.layers.0.self_attn.q_proj", "lm_head" of "model.lm_head".
    """
    numbered = NUMBERED.search(module)
    return numbered[1] if numbered else last_part(module)


def last_part(module: str) -> str:
    """Return the last part of a name: "q_proj" of "model.layers.0.self_attn.q_proj"."""
    return module.rpartition(".")[2]


def layer_name(module: str) -> str | None:
    """Return the layer of a module, "layers.0" of "model.layers.0.self_attn.q_proj"; None if it is in no layer."""
    numbered = NUMBERED.search(module)
    return ".".join(numbered[1].split(".")[:2]) if numbered else None


def layer_number(module: str) -> int | None:
    """Return the layer's number, 0 of "model.layers.0.self_attn.q_proj"; None if the module is in no layer."""
    layer = layer_name(module)
    return int(last_part(layer)) if layer else None


def describe_module(module: str) -> str:
    """Return a name for messages, "q_proj of layer 0" of "model.layers.0.self_attn.q_proj"."""
    number = layer_number(module)
    return last_part(module) if number is None else f"{last_part(module)} of layer {number}"


def is_expert(module: str) -> bool:
    """Return whether `module` belongs to the experts of a mixture, which are stored singly, stacked or fused.

    When PEFT adapts two parameters of one module (`target_parameters`), it calls the second one "base_layer".
    """
    parts = module.split(".")
    return "experts" in parts or "base_layer" in parts
