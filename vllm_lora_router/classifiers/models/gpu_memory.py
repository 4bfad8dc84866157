"""The device memory that classifiers take beside the engine, counted before any is loaded. All figures are bytes."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from math import ceil, floor, prod
from pathlib import Path

import numpy as np

from vllm_lora_router.adapters.files.safetensors_header import BITS, HeaderError, Tensor, read_header
from vllm_lora_router.classifiers.domain import read_labels
from vllm_lora_router.classifiers.labels import Encode, map_labels
from vllm_lora_router.classifiers.models.batcher import MOST
from vllm_lora_router.classifiers.models.cuda_graphs import MOST_TOKENS
from vllm_lora_router.classifiers.models.encoder import packaged, torch_device
from vllm_lora_router.classifiers.models.static_embeddings import is_static
from vllm_lora_router.config.head_source import head_source
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.warnings import methods_of
from vllm_lora_router.types import Method

MIB = 2**20

# What a process takes on a GPU before a model is on it: the driver's context, the kernels of torch and cuBLAS, and
# their work space. An estimate, not measured; it differs between drivers and cards.
CONTEXT_BYTES = 600 * MIB

# Of a model whose weights are not on this disk yet: 270 million parameters, more than most encoders have.
ASSUMED_BYTES = 512 * MIB

# Every model is put on a GPU as bfloat16, whatever its file holds.
ELEMENT_BYTES = 2

# The numbers that a layer holds at once, a token and its width: input, residual, and the two sides of a feed-forward
# part of four times the width. Counted in forward passes of BERT, XLM-R and DistilBERT (12) and of ModernBERT (16).
WIDTHS = 16
ASSUMED_WIDTH = 1024

# Models that write their attention down, and the numbers that they hold for each pair of tokens and each head.
WRITTEN_OUT = ("deberta", "deberta-v2")
NUMBERS_PER_PAIR = 6
ASSUMED_HEADS = 16

WITH_GRAPHS = ("domain",)  # the methods whose model is captured as CUDA graphs

# Of what vLLM leaves outside its share, this much stays free: the engine grows into it after it has counted, by graphs,
# by fragments and by the buffers of its communication.
KEPT = 0.5

# Where sentence-transformers keeps a model that is one of several modules.
WEIGHTS = ("*.safetensors", "[0-9]*_*/*.safetensors")

USUAL_SHARE = 0.92  # vLLM's default --gpu-memory-utilization


def needed_bytes(loaded: Loaded, device_of: Callable[..., str] = torch_device) -> int:
    """What the classifiers of a configuration take in one API-server process, on the GPU where they take most.

    Weights, the largest batch, and once what any process takes on a GPU; 0 where no model runs on one.

    Args:
        device_of: the device that a model's settings lead to, as `torch_device` says it.
    """
    taken: Counter[str] = Counter()
    for method, model_id, device, max_tokens in _used(loaded, device_of):
        folder = _folder(loaded, model_id)
        if device.startswith("cuda") and not (folder and is_static(folder)):
            weights = weights_bytes(folder) if folder else None
            batch = batch_bytes(folder, max_tokens, graphs=method in WITH_GRAPHS)
            taken[_numbered(device)] += (weights or ASSUMED_BYTES) + batch
    return max(taken.values()) + CONTEXT_BYTES if taken else 0


def model_bytes(method: str, source: str, max_tokens: int) -> int | None:
    """What a model and its largest batch take on a GPU.

    None where its weights are not on this disk, and for a static encoder, which never goes there.

    Args:
        method: what it is for, embedding or domain.
        source: a folder or a hub id.
    """
    folder = Path(source) if Path(source).is_dir() else _cached(source)
    weights = weights_bytes(folder) if folder and not is_static(folder) else None
    return weights + batch_bytes(folder, max_tokens, graphs=method in WITH_GRAPHS) if weights else None


def weights_bytes(folder: Path) -> int | None:
    """What the weights in a folder take on a GPU; None where it has no *.safetensors."""
    files = [file for pattern in WEIGHTS for file in folder.glob(pattern)]
    return sum(map(_file_bytes, files)) or None


def batch_bytes(folder: Path | None, max_tokens: int, *, graphs: bool) -> int:
    """What the forward pass of the largest batch takes, at most: 64 texts, each as long as the model reads.

    Texts x tokens x width x 16 numbers of 2 bytes, with the width in the folder's config.json. Where attention is
    written down (DeBERTa), also 6 numbers for each pair of tokens and each head. With CUDA `graphs`, also the same for
    the largest of them: what graphs use is theirs alone.
    """
    config = _json(folder / "config.json") if folder else {}
    sentence = _json(folder / "sentence_bert_config.json") if folder else {}
    limits = (_count(config, "max_position_embeddings"), _count(sentence, "max_seq_length"))
    longest = min((limit for limit in limits if limit), default=max_tokens)
    tokens = min(max_tokens, longest)
    numbers = WIDTHS * (_count(config, "hidden_size", "dim", "d_model") or ASSUMED_WIDTH)
    if config.get("model_type") in WRITTEN_OUT:
        numbers += NUMBERS_PER_PAIR * tokens * (_count(config, "num_attention_heads") or ASSUMED_HEADS)
    of_graphs = min(MOST_TOKENS, MOST * longest) if graphs else 0
    return (MOST * tokens + of_graphs) * numbers * ELEMENT_BYTES


def utilization(default: float, total_bytes: int, needed_bytes: int, processes: int) -> float | None:
    """The largest `--gpu-memory-utilization` that leaves room for the classifiers, in whole hundredths.

    It can be more than `default`, which then leaves enough, and is 0 where a device has no such room. None when
    nothing is needed.

    Args:
        default: what vLLM takes when it is told nothing. A half of what that leaves stays free in any case.
        total_bytes: the memory of one device.
        needed_bytes: by one API-server process: each loads its own models, on the first device.
        processes: the API-server processes.
    """
    if not needed_bytes or not processes:
        return None
    kept = KEPT * (1 - default) * total_bytes
    share = 1 - (kept + needed_bytes * processes) / total_bytes
    # 0.87 is a little less than 87 hundredths to a computer.
    return max(floor(round(100 * share, 6)) / 100, 0.0)


def lower(total_bytes: int, free_bytes: int, own_bytes: int, needed_bytes: int) -> tuple[float, float]:
    """What to set `--gpu-memory-utilization` to when a model finds too little room, and by how much to lower it.

    In hundredths. The first is for a process that is alone with the engine on the device, and 0 where that would not do
    either; the second holds whoever else is there.

    Args:
        own_bytes: what this process has on the device already.
        needed_bytes: by the model, more than `free_bytes`.
    """
    figure = utilization(USUAL_SHARE, total_bytes, needed_bytes + own_bytes + CONTEXT_BYTES, 1)
    return figure or 0.0, ceil(round(100 * (needed_bytes - free_bytes) / total_bytes, 6)) / 100


def _used(loaded: Loaded, device_of: Callable[..., str]) -> Iterator[tuple[Method, str, str, int]]:
    """Each model that `build` would load: what for, its id, its device, and the tokens of its longest text."""
    of_texts = loaded.config.router.text.max_tokens
    domain, encoder = loaded.config.classifier.category_model, loaded.config.classifier.embedding_model
    if _has_encoder(loaded):
        device = device_of(encoder.device, encoder.runtime)
        yield "embedding", encoder.model_id, device, min(encoder.max_tokens or of_texts, of_texts)
    if methods_of(loaded.config).get("domain"):
        device = device_of(domain.device, domain.runtime, use_cpu=domain.use_cpu)
        yield "domain", domain.model_id, device, min(domain.max_tokens or of_texts, of_texts)


def _has_encoder(loaded: Loaded) -> bool:
    config = loaded.config
    methods = methods_of(config)
    allowed = {category.name for category in config.categories if category.may_be_chosen_by("embedding")}
    ruled = any(rule.category in allowed for rule in config.embedding_rules)
    if methods.get("embedding") and (ruled or head_source(config) is not None):
        return True
    asked: list[bool] = []

    def encode() -> Encode:
        asked.append(True)
        return lambda texts: np.zeros((len(texts), 1))

    if methods.get("domain"):
        map_labels(read_labels(loaded), config, encode)
    return bool(asked)


def _folder(loaded: Loaded, model_id: str) -> Path | None:
    if found := loaded.locate(model_id) or packaged(model_id):
        return Path(found)
    return _cached(model_id)


def _cached(model_id: str) -> Path | None:
    """The folder where the hub's library keeps a model."""
    try:
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(model_id, "config.json")
    except (ImportError, ValueError):  # the latter: nothing that could be an id
        return None
    return Path(file).parent if isinstance(file, str) else None


def _file_bytes(file: Path) -> int:
    try:
        return sum(map(_tensor_bytes, read_header(file).values()))
    except HeaderError:
        return file.stat().st_size


def _tensor_bytes(tensor: Tensor) -> int:
    count = prod(tensor.shape)
    return count * ELEMENT_BYTES if tensor.dtype.startswith(("F", "BF")) else count * BITS[tensor.dtype] // 8


def _numbered(device: str) -> str:
    return device if ":" in device else f"{device}:0"


def _json(file: Path) -> dict[str, object]:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _count(settings: dict[str, object], *names: str) -> int | None:
    found = (settings.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)
