"""Estimate of the memory that classifiers need next to the engine, before a model is loaded, in bytes."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from math import ceil, floor, prod
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from vllm_lora_router.classifiers.labels import Encode, map_labels, read_labels
from vllm_lora_router.classifiers.models.batcher import MAX_BATCH_SIZE
from vllm_lora_router.classifiers.models.cuda_graphs import MAX_GRAPH_TOKENS
from vllm_lora_router.classifiers.models.source import packaged, torch_device
from vllm_lora_router.classifiers.models.static_embeddings import is_static
from vllm_lora_router.config.head_source import head_source
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.methods import configured_methods
from vllm_lora_router.types import Method

MIB = 2**20

# Memory that a process needs on a GPU before it loads a model: the driver's context, the kernels of torch and cuBLAS,
# and their work space. This is an estimate, not a measurement; it differs between drivers and cards.
CONTEXT_BYTES = 600 * MIB

# Size of a model whose weights are not on this disk yet: 270 million parameters, more than most encoders have.
ASSUMED_BYTES = 512 * MIB

# Every model runs on a GPU in bfloat16, whatever the data type in its file.
ELEMENT_BYTES = 2

# Numbers that a layer holds at once, for each token and each dimension of its width: input, residual, and both sides
# of a feed-forward layer of four times the width. Counted in forward passes of BERT, XLM-R and DistilBERT (12) and of
# ModernBERT (16).
WIDTHS = 16
ASSUMED_WIDTH = 1024

# Model types that materialize the attention matrix, and the numbers that they hold for each pair of tokens and each
# head.
MATERIALIZED_ATTENTION = ("deberta", "deberta-v2")
NUMBERS_PER_PAIR = 6
ASSUMED_HEADS = 16

METHODS_WITH_GRAPHS = ("domain",)  # methods whose model is captured in CUDA graphs

# Share of the memory outside vLLM's utilization that stays free: after vLLM has measured its memory, the engine grows
# by CUDA graphs, fragmentation and communication buffers.
RESERVED_SHARE = 0.5

# Places of weights: sentence-transformers stores a model with several modules in numbered folders.
WEIGHTS = ("*.safetensors", "[0-9]*_*/*.safetensors")

DEFAULT_UTILIZATION = 0.92  # vLLM's default for --gpu-memory-utilization


def needed_bytes(loaded: LoadedConfig, device_of: Callable[..., str] = torch_device) -> int:
    """Return the memory that the classifiers of a configuration need in one API-server process.

    This is the sum of weights, the largest batch, and the context of a process, on the GPU that needs the most; 0 if no
    model runs on a GPU.

    Args:
        device_of: Returns the device for a model's settings, like `torch_device`.
    """
    needed: Counter[str] = Counter()
    for method, model_id, device, max_tokens in _configured_models(loaded, device_of):
        folder = _folder(loaded, model_id)
        if device.startswith("cuda") and not (folder and is_static(folder)):
            weights = weights_bytes(folder) if folder else None
            batch = batch_bytes(folder, max_tokens, graphs=method in METHODS_WITH_GRAPHS)
            needed[_with_index(device)] += (weights or ASSUMED_BYTES) + batch
    return max(needed.values()) + CONTEXT_BYTES if needed else 0


def host_bytes(loaded: LoadedConfig, device_of: Callable[..., str] = torch_device) -> dict[str, int]:
    """Return the host memory for the weights of the models that run on the CPU, by their key under `classifier`.

    It does not include models whose weights are not on this disk yet.

    Args:
        device_of: Returns the device for a model's settings, like `torch_device`.
    """
    needed: dict[str, int] = {}
    for method, model_id, device, _ in _configured_models(loaded, device_of):
        if not device.startswith("cuda") and (folder := _folder(loaded, model_id)):
            key = "embedding_model" if method == "embedding" else "category_model"
            needed[key] = sum(file.stat().st_size for pattern in WEIGHTS for file in folder.glob(pattern))
    return needed


def model_bytes(method: str, source: str, max_tokens: int) -> int | None:
    """Return the memory that a model and its largest batch need on a GPU.

    Returns None if the weights are not on this disk, and for a static encoder, which always runs on the CPU.

    Args:
        method: The method that uses the model: embedding or domain.
        source: A folder or a hub id.
    """
    folder = Path(source) if Path(source).is_dir() else _hub_cache_folder(source)
    weights = weights_bytes(folder) if folder and not is_static(folder) else None
    return weights + batch_bytes(folder, max_tokens, graphs=method in METHODS_WITH_GRAPHS) if weights else None


def weights_bytes(folder: Path) -> int | None:
    """Return the memory that the weights in a folder need on a GPU, or None if it has no *.safetensors."""
    files = [file for pattern in WEIGHTS for file in folder.glob(pattern)]
    return sum(map(_file_bytes, files)) or None


def batch_bytes(folder: Path | None, max_tokens: int, *, graphs: bool) -> int:
    """Return the maximum memory of a forward pass: 64 texts, each as long as the model reads.

    This is texts x tokens x width x 16 numbers of 2 bytes, with the width from the folder's config.json. A model that
    materializes attention (DeBERTa) also needs 6 numbers for each pair of tokens and each head. With CUDA `graphs` the
    same is added for the largest graph, because the memory of graphs is separate.
    """
    config = _json(folder / "config.json") if folder else {}
    sentence = _json(folder / "sentence_bert_config.json") if folder else {}
    limits = (_positive_int(config, "max_position_embeddings"), _positive_int(sentence, "max_seq_length"))
    longest = min((limit for limit in limits if limit), default=max_tokens)
    tokens = min(max_tokens, longest)
    numbers = WIDTHS * (_positive_int(config, "hidden_size", "dim", "d_model") or ASSUMED_WIDTH)
    if config.get("model_type") in MATERIALIZED_ATTENTION:
        numbers += NUMBERS_PER_PAIR * tokens * (_positive_int(config, "num_attention_heads") or ASSUMED_HEADS)
    graph_tokens = min(MAX_GRAPH_TOKENS, MAX_BATCH_SIZE * longest) if graphs else 0
    return (MAX_BATCH_SIZE * tokens + graph_tokens) * numbers * ELEMENT_BYTES


def utilization(default: float, total_bytes: int, needed_bytes: int, processes: int) -> float | None:
    """Return the largest `--gpu-memory-utilization` that leaves room for the classifiers, in steps of 0.01.

    The result can be larger than `default`, if the default leaves enough room, and is 0 if the device is too small. It
    is None if no memory is needed.

    Args:
        default: vLLM's default. Half of the memory that it leaves stays free in any case.
        total_bytes: Memory of one device.
        needed_bytes: Memory needed by one API-server process. Each process loads its own models on the first device.
        processes: Number of API-server processes.
    """
    if not needed_bytes or not processes:
        return None
    reserved = RESERVED_SHARE * (1 - default) * total_bytes
    share = 1 - (reserved + needed_bytes * processes) / total_bytes
    # Rounded first, because 0.87 is slightly less than 87 hundredths in floating point.
    return max(floor(round(100 * share, 6)) / 100, 0.0)


def suggest_utilization(total_bytes: int, free_bytes: int, own_bytes: int, needed_bytes: int) -> tuple[float, float]:
    """Return a `--gpu-memory-utilization` for a model that does not fit, and the reduction that it needs.

    Both are in steps of 0.01. The first applies to a process that shares the device only with the engine, and is 0 if
    that is not enough. The second also applies if other processes use the device.

    Args:
        own_bytes: Memory that this process has on the device already.
        needed_bytes: Memory that the model needs, more than `free_bytes`.
    """
    suggested = utilization(DEFAULT_UTILIZATION, total_bytes, needed_bytes + own_bytes + CONTEXT_BYTES, 1)
    return suggested or 0.0, ceil(round(100 * (needed_bytes - free_bytes) / total_bytes, 6)) / 100


def _configured_models(loaded: LoadedConfig, device_of: Callable[..., str]) -> Iterator[tuple[Method, str, str, int]]:
    """Yield each model that `build` would load: its method, id, device and the number of tokens of its longest text."""
    text_tokens = loaded.config.router.text.max_tokens
    domain, encoder = loaded.config.classifier.category_model, loaded.config.classifier.embedding_model
    if _needs_encoder(loaded):
        device = device_of(encoder.device, encoder.runtime)
        yield "embedding", encoder.model_id, device, min(encoder.max_tokens or text_tokens, text_tokens)
    if configured_methods(loaded.config).get("domain"):
        device = device_of(domain.device, domain.runtime, use_cpu=domain.use_cpu)
        yield "domain", domain.model_id, device, min(domain.max_tokens or text_tokens, text_tokens)


def _needs_encoder(loaded: LoadedConfig) -> bool:
    config = loaded.config
    methods = configured_methods(config)
    allowed = {category.name for category in config.categories if category.may_be_chosen_by("embedding")}
    has_rule = any(rule.category in allowed for rule in config.embedding_rules)
    if methods.get("embedding") and (has_rule or head_source(config) is not None):
        return True
    # Without rules and head, the encoder is needed only if a label has to be mapped by similarity.
    encode_calls: list[bool] = []

    def encode() -> Encode:
        encode_calls.append(True)
        return lambda texts: np.zeros((len(texts), 1))

    if methods.get("domain"):
        map_labels(read_labels(loaded), config, encode)
    return bool(encode_calls)


def _folder(loaded: LoadedConfig, model_id: str) -> Path | None:
    if folder := loaded.locate(model_id) or packaged(model_id):
        return Path(folder)
    return _hub_cache_folder(model_id)


def _hub_cache_folder(model_id: str) -> Path | None:
    """Return the folder in the cache of the hub's library, or None if the model is not there."""
    try:
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(model_id, "config.json")
    except (ImportError, ValueError):  # ValueError: the text is not a valid id
        return None
    return Path(file).parent if isinstance(file, str) else None


def _file_bytes(file: Path) -> int:
    try:
        with safe_open(file, "numpy") as tensors:  # reads the header only
            slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
            return sum(_tensor_bytes(tensor.get_dtype(), tensor.get_shape()) for tensor in slices)
    except (OSError, SafetensorError):
        return file.stat().st_size


def _tensor_bytes(dtype: str, shape: list[int]) -> int:
    if dtype.startswith(("F", "BF")):
        return prod(shape) * ELEMENT_BYTES
    bits = int(re.sub(r"\D", "", dtype) or 8)  # I64 -> 64; BOOL has no number and takes a byte
    return prod(shape) * bits // 8


def _with_index(device: str) -> str:
    return device if ":" in device else f"{device}:0"


def _json(file: Path) -> dict[str, object]:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _positive_int(settings: dict[str, object], *names: str) -> int | None:
    values = (settings.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)
