"""The names of a model's modules, as checkpoints write them and as people read them."""

import re

NUMBERED = re.compile(r"(?:^|\.)([^.]+\.\d+(?:\..+)?)$")


def tail(module: str) -> str:
    """The part that no version of transformers renames: from the layer on, or the last word where there is no layer.

    "layers.0.self_attn.q_proj" of "model.language_model.layers.0.self_attn.q_proj", "lm_head" of "model.lm_head".
    """
    numbered = NUMBERED.search(module)
    return numbered[1] if numbered else last(module)


def last(module: str) -> str:
    """ "q_proj" of "model.layers.0.self_attn.q_proj"."""
    return module.rpartition(".")[2]


def layer(module: str) -> str | None:
    """ "layers.0" of "model.layers.0.self_attn.q_proj", None where there is no layer."""
    numbered = NUMBERED.search(module)
    return ".".join(numbered[1].split(".")[:2]) if numbered else None


def layer_number(module: str) -> int | None:
    """0 of "model.layers.0.self_attn.q_proj", None where there is no layer."""
    found = layer(module)
    return int(last(found)) if found else None


def in_words(module: str) -> str:
    """ "q_proj of layer 0" of "model.layers.0.self_attn.q_proj", the last word where there is no layer."""
    number = layer_number(module)
    return last(module) if number is None else f"{last(module)} of layer {number}"


def is_expert(module: str) -> bool:
    """Whether `module` is one of a mixture's experts, which are stored one by one, stacked or fused, as it comes.

    PEFT calls the second of two parameters that it adapts in one module "base_layer" (`target_parameters`).
    """
    parts = module.split(".")
    return "experts" in parts or "base_layer" in parts
