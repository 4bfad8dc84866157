"""adapter_model.safetensors: which modules an adapter changes, by the header alone."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from vllm_lora_router.adapters.files.module_names import in_words, is_expert
from vllm_lora_router.adapters.files.peft_config import HEADS, Settings
from vllm_lora_router.adapters.files.safetensors_header import HeaderError, Tensor, read_header

WEIGHTS = "adapter_model.safetensors"

# vLLM would fall back to these. Loading a pickle can run code.
PICKLES = ("adapter_model.bin", "adapter_model.pt")

PREFIX = "base_model.model."
HALVES = {
    "lora_A.weight": ("a", False),
    "lora_B.weight": ("b", False),
    "lora_embedding_A": ("a", True),
    "lora_embedding_B": ("b", True),
}

# Copies of the base's own weights, which PEFT stores beside an embedding's LoRA and vLLM leaves out.
COPIES = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


@dataclass(frozen=True)
class LoraModule:
    """The two halves of one module's LoRA."""

    name: str  # as the base calls it, or another version of transformers did
    a: tuple[int, ...] | None = None  # (rank, inputs)
    b: tuple[int, ...] | None = None  # (outputs, rank)
    embedding: bool = False  # then the inputs are the vocabulary

    @property
    def is_whole(self) -> bool:
        """Whether both halves are there and are matrices."""
        return self.a is not None and self.b is not None and len(self.a) == len(self.b) == 2


@dataclass(frozen=True)
class Weights:
    """What an adapter's weights file contains."""

    modules: tuple[LoraModule, ...]
    unknown: tuple[str, ...]  # tensors whose names vLLM cannot read
    size_bytes: int

    @property
    def elements(self) -> int:
        """The numbers in all LoRA tensors together, without copies of the base's own weights."""
        return sum(prod(shape) for module in self.modules for shape in (module.a, module.b) if shape is not None)


def read_weights(folder: Path) -> tuple[Weights | None, list[str]]:
    """The weights of the adapter in `folder`, None where there are none to read, and what is wrong with the file."""
    file = folder / WEIGHTS
    if not file.exists():
        pickle = next((name for name in PICKLES if (folder / name).exists()), None)
        if pickle is None:
            return None, [f"{WEIGHTS} is missing; copy all files that PEFT's save_pretrained wrote"]
        return None, [
            f"{WEIGHTS} is missing, and {pickle} is never loaded, since a pickle can run code; convert it: load the "
            "adapter with PEFT where you trust it and call save_pretrained, which writes safetensors"
        ]
    try:
        header = read_header(file)
        size_bytes = file.stat().st_size
    except (HeaderError, OSError) as error:
        return None, [f"{WEIGHTS} {error}"]
    modules, unknown = _pair(header)
    if not modules:
        return None, [
            f"{WEIGHTS} has no LoRA tensors ('...lora_A.weight'); save the adapter with PEFT's save_pretrained"
        ]
    return Weights(modules, unknown, size_bytes), []


def faults(weights: Weights) -> list[str]:
    """What is wrong with the weights whatever the base is: half a LoRA, or tensors that are no matrices."""
    problems = []
    if halves := [module for module in weights.modules if module.a is None or module.b is None]:
        one = halves[0]
        there, gone = ("lora_A", "lora_B") if one.b is None else ("lora_B", "lora_A")
        problems.append(
            f"{WEIGHTS}: {in_words(one.name)} has {there} but no {gone} ({len(halves)} of {len(weights.modules)} "
            "modules lack a half); save or copy the adapter again"
        )
    bent = [one for one in _plain(weights) if one.a is not None and one.b is not None and not one.is_whole]
    if bent:
        problems.append(
            f"{WEIGHTS}: {in_words(bent[0].name)} has lora_A of shape {bent[0].a} and lora_B of {bent[0].b}, not two "
            f"matrices ({len(bent)} such modules); save the adapter with PEFT's save_pretrained"
        )
    return problems


def rank_faults(weights: Weights, settings: Settings) -> list[str]:
    """Whether the tensors have the rank that the settings say: vLLM scales by what the settings say."""
    wrong = [
        (one.name, one.a[0], one.b[1])
        for one in _plain(weights)
        if one.a and one.b and one.is_whole and {one.a[0], one.b[1]} != {settings.rank_of(one.name)}
    ]
    if not wrong:
        return []
    name, of_a, of_b = wrong[0]
    found = f"rank {of_a}" if of_a == of_b else f"ranks {of_a} (lora_A) and {of_b} (lora_B)"
    return [
        f"{in_words(name)} has {found} in {WEIGHTS} and rank {settings.rank_of(name)} in adapter_config.json "
        f"({len(wrong)} of {len(weights.modules)} modules differ); "
        "restore the adapter_config.json of the same training run"
    ]


def unknown_faults(weights: Weights) -> list[str]:
    """Whether there are tensors that make vLLM refuse the whole file."""
    if not weights.unknown:
        return []
    return [
        f"{WEIGHTS}: vLLM cannot read {weights.unknown[0]!r} ({len(weights.unknown)} such tensors); save the LoRA "
        "alone with PEFT's save_pretrained, with save_embedding_layers=False if these are whole embeddings"
    ]


def _plain(weights: Weights) -> list[LoraModule]:
    # The experts' tensors are stacked or fused: neither a matrix each nor of the rank that the settings say.
    return [module for module in weights.modules if not is_expert(module.name)]


def _pair(header: dict[str, Tensor]) -> tuple[tuple[LoraModule, ...], tuple[str, ...]]:
    # Reads names as parse_fine_tuned_lora_name in vllm/lora/utils.py does: what that refuses is unknown here.
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    embeddings = set()
    unknown = []
    for name, tensor in header.items():
        if name.endswith(COPIES) or _is_head(name):
            continue
        for ending, (half, embedding) in HALVES.items():
            if name.endswith("." + ending):
                module = name.removeprefix(PREFIX).removesuffix("." + ending)
                halves.setdefault(module, {})[half] = tensor.shape
                if embedding:
                    embeddings.add(module)
                break
        else:
            unknown.append(name)
    modules = tuple(
        LoraModule(name, shapes.get("a"), shapes.get("b"), name in embeddings)
        for name, shapes in sorted(halves.items())
    )
    return modules, tuple(unknown)


def _is_head(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and parts[-2] in HEADS and parts[-1] in ("weight", "bias")
