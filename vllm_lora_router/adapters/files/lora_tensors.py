"""Read and check an adapter's tensors from the header of its adapter_model.safetensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from vllm_lora_router.adapters.files.module_names import describe_module, is_expert
from vllm_lora_router.adapters.files.module_patterns import MAX_ATTEMPTS
from vllm_lora_router.adapters.files.peft_config import CONFIG, HEADS, PeftSettings
from vllm_lora_router.adapters.files.safetensors_header import HeaderError, HeaderLimits, Tensor, read_header
from vllm_lora_router.adapters.files.untrusted_file import short_repr
from vllm_lora_router.coordination.shortage import shortage_of

WEIGHTS = "adapter_model.safetensors"
HEADER_LIMITS = HeaderLimits(max_bytes=16_000_000, max_tensors=200_000)
MAX_NAME_LENGTH = 512  # characters of a tensor's name

# vLLM would fall back to these files. Loading a pickle can run code.
PICKLES = ("adapter_model.bin", "adapter_model.pt")

PREFIX = "base_model.model."
HALVES = {
    "lora_A.weight": ("a", False),
    "lora_B.weight": ("b", False),
    "lora_embedding_A": ("a", True),
    "lora_embedding_B": ("b", True),
}

# Other dtypes are integers or need scales, which vLLM does not read.
DTYPES = frozenset({"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"})

# Copies of the base's own weights, which PEFT stores with an embedding's LoRA and vLLM ignores.
COPIES = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


@dataclass(frozen=True)
class LoraModule:
    """The shapes of one module's two LoRA tensors."""

    name: str  # the base's name for the module, in this or another version of transformers
    a: tuple[int, ...] | None = None  # (rank, inputs)
    b: tuple[int, ...] | None = None  # (outputs, rank)
    embedding: bool = False  # if so, the inputs are the vocabulary

    @property
    def is_complete(self) -> bool:
        """Whether both tensors exist and are matrices."""
        return self.a is not None and self.b is not None and len(self.a) == len(self.b) == 2


@dataclass(frozen=True)
class Weights:
    """The tensors of an adapter's weights file."""

    modules: tuple[LoraModule, ...]
    unknown: tuple[str, ...]  # tensors with names that vLLM cannot read
    size_bytes: int

    @property
    def elements(self) -> int:
        """The number of elements of all LoRA tensors, without copies of the base's own weights."""
        return sum(prod(shape) for module in self.modules for shape in (module.a, module.b) if shape is not None)


def read_weights(folder: Path, boundary: Path | None = None) -> tuple[Weights | None, list[str]]:
    """Read the weights of the adapter in `folder`.

    Args:
        boundary: the folder that the real file must be in; None allows all.

    Returns:
        The weights, None if they cannot be read; and the problems of the file.

    Raises:
        OSError: the file system does not answer.
    """
    file = folder / WEIGHTS
    if not file.exists():
        pickle = next((name for name in PICKLES if (folder / name).exists()), None)
        if pickle is None:
            return None, [f"{WEIGHTS} is missing; copy all files that PEFT's save_pretrained wrote"]
        return None, [
            f"{WEIGHTS} is missing, and {pickle} is never loaded because a pickle can run code; convert it: load the "
            "adapter with PEFT on a machine where you trust it and call save_pretrained, which writes safetensors"
        ]
    try:
        header = read_header(file, HEADER_LIMITS, boundary)
        size_bytes = file.stat().st_size
    except (HeaderError, OSError) as error:
        if shortage := shortage_of(error):
            raise shortage from None
        return None, [f"{WEIGHTS} {error}"]
    if problem := _name_problem(header) or _dtype_problem(header):
        return None, [f"{WEIGHTS}: {problem}"]
    modules, unknown = _pair(header)
    if not modules:
        return None, [
            f"{WEIGHTS} has no LoRA tensors ('...lora_A.weight'); save the adapter with PEFT's save_pretrained"
        ]
    return Weights(modules, unknown, size_bytes), []


def tensor_problems(weights: Weights) -> list[str]:
    """Return the problems that do not depend on the base: a missing LoRA tensor, or tensors that are not matrices."""
    problems = []
    if halves := [module for module in weights.modules if module.a is None or module.b is None]:
        first = halves[0]
        present, missing = ("lora_A", "lora_B") if first.b is None else ("lora_B", "lora_A")
        problems.append(
            f"{WEIGHTS}: {describe_module(first.name)} has {present} but no {missing} ({len(halves)} of "
            f"{len(weights.modules)} modules have only one); save or copy the adapter again"
        )
    not_matrices = [
        module for module in _plain(weights) if module.a is not None and module.b is not None and not module.is_complete
    ]
    if not_matrices:
        first = not_matrices[0]
        problems.append(
            f"{WEIGHTS}: {describe_module(first.name)} has lora_A of shape {first.a} and lora_B of shape {first.b}, "
            f"not two matrices ({len(not_matrices)} such modules); save the adapter with PEFT's save_pretrained"
        )
    return problems


def rank_problems(weights: Weights, settings: PeftSettings) -> list[str]:
    """Return the tensors that differ in rank from the settings, by which vLLM scales them."""
    differing = [
        (module.name, module.a[0], module.b[1])
        for module in _plain(weights)
        if module.a
        and module.b
        and module.is_complete
        and {module.a[0], module.b[1]} != {settings.rank_of(module.name)}
    ]
    if not differing:
        return []
    name, rank_a, rank_b = differing[0]
    ranks = f"rank {rank_a}" if rank_a == rank_b else f"ranks {rank_a} (lora_A) and {rank_b} (lora_B)"
    return [
        f"{describe_module(name)} has {ranks} in {WEIGHTS} and rank {settings.rank_of(name)} in adapter_config.json "
        f"({len(differing)} of {len(weights.modules)} modules differ); "
        "restore the adapter_config.json of the same training run"
    ]


def pattern_problems(weights: Weights, settings: PeftSettings) -> list[str]:
    """Return a problem if vLLM would take too long to match the patterns of the settings with the modules' names."""
    modules = [module.name for module in weights.modules]
    attempts = settings.ranks.attempts(modules) + settings.alphas.attempts(modules)
    if attempts <= MAX_ATTEMPTS:
        return []
    return [
        f"{CONFIG}: vLLM matches rank_pattern and alpha_pattern with the names of {len(modules):,} modules while no "
        f"request advances, and may need {attempts:.1e} attempts, more than {MAX_ATTEMPTS:.0e}; use module names, or "
        "fewer patterns with fewer '*', '+' and '|'"
    ]


def scaling_problems(weights: Weights, settings: PeftSettings) -> tuple[list[str], list[str]]:
    """Return problems and warnings about the factors by which vLLM multiplies the modules' LoRA."""
    names = [module.name for module in weights.modules]
    scalings = [settings.scaling_of(name) for name in names]
    zeros = [name for name, scaling in zip(names, scalings, strict=True) if scaling == 0]
    cause = "lora_alpha or alpha_pattern"
    if len(zeros) == len(names):
        return [
            f"{CONFIG}: {cause} is 0 for all {len(names)} modules, so the adapter would not change any answer; "
            "save it again with the lora_alpha that it was trained with"
        ], []
    warnings = []
    if zeros:
        warnings.append(
            f"{cause} is 0 for {len(zeros)} of {len(names)} modules, such as {zeros[0]!r}: they have no effect"
        )
    if negative := sum(scaling < 0 for scaling in scalings):
        warnings.append(f"{cause} is negative for {negative} of {len(names)} modules: vLLM subtracts their LoRA")
    return [], warnings


def unknown_tensor_problems(weights: Weights) -> list[str]:
    """Return the tensors for which vLLM refuses the whole file."""
    if not weights.unknown:
        return []
    return [
        f"{WEIGHTS}: vLLM cannot read {weights.unknown[0]!r} ({len(weights.unknown)} such tensors); save only the LoRA "
        "with PEFT's save_pretrained, with save_embedding_layers=False if these are whole embeddings"
    ]


def _plain(weights: Weights) -> list[LoraModule]:
    # The tensors of experts are stacked or fused: they are not matrices of the rank in the settings.
    return [module for module in weights.modules if not is_expert(module.name)]


def _pair(header: dict[str, Tensor]) -> tuple[tuple[LoraModule, ...], tuple[str, ...]]:
    # Parses names like parse_fine_tuned_lora_name in vllm/lora/utils.py: a name that it refuses is unknown here.
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


def _name_problem(header: Mapping[str, Tensor]) -> str | None:
    for name in header:
        if len(name) > MAX_NAME_LENGTH or not name.isprintable():
            return (
                f"the tensor name {short_repr(name)} has more than {MAX_NAME_LENGTH} characters or unprintable ones; "
                "save the adapter with PEFT's save_pretrained"
            )
    return None


def _dtype_problem(header: Mapping[str, Tensor]) -> str | None:
    for name, tensor in header.items():
        if tensor.dtype not in DTYPES and not name.endswith(COPIES):
            return (
                f"{name!r} has the dtype {tensor.dtype}: vLLM would not convert it to the numbers that it stands for; "
                "save the adapter in bfloat16, float16 or float32"
            )
    return None


def _is_head(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and parts[-2] in HEADS and parts[-1] in ("weight", "bias")
