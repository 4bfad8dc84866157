"""Read the base model's properties from its folder, without loading it."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_lora_router.adapters.files.module_names import is_expert, last_part, layer_name, stable_suffix
from vllm_lora_router.adapters.files.safetensors_header import HeaderError, read_header
from vllm_lora_router.adapters.files.untrusted_file import read_regular

Shape = tuple[int, int]  # (outputs, inputs) of a linear layer, (vocabulary, width) of an embedding

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 100_000_000

# Packed weights hold several numbers in one element, so their shape is not the layer's.
PACKED = frozenset({"U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F4"})

EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings"})

# Layers that some checkpoints store fused and others separately.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


@dataclass(frozen=True)
class BaseModel:
    """The properties of a base model. A property is None if the files do not give it or are not on disk yet."""

    name: str  # as given: a folder or a hub id
    folder: Path | None = None
    shapes: Mapping[str, Shape | None] | None = None  # by module; None if the module is packed or not a matrix
    layers: int | None = None
    hidden_size: int | None = None
    chat_template: bool | None = None

    @classmethod
    def find(cls, model: str, revision: str | None = None, cache: Path | None = None) -> "BaseModel":
        """Return the properties of a base model on disk. Never downloads.

        Args:
            model: a folder, or a hub id whose files are in the Hugging Face cache.
            revision: the hub revision (default: the main one).
            cache: another cache folder than the user's own, such as vLLM's `--download-dir`.
        """
        folder = Path(model) if Path(model).is_dir() else _cached(model, revision, cache)
        if folder is None:
            return cls(model)
        config = read_json(folder / "config.json")
        return cls(
            name=model,
            folder=folder,
            shapes=_shapes(folder, config),
            layers=_number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
            hidden_size=_number(config, "hidden_size", "n_embd", "d_model"),
            chat_template=_has_chat_template(folder),
        )

    def shapes_of(self, module: str) -> tuple[Shape | None, ...]:
        """Return the shapes of the modules that an adapter may mean by `module`; empty if the base has none.

        If the exact name exists, it is the only match. Otherwise all modules match that have the same name from their
        layer on, because versions of transformers differ in the part before it: "model.language_model.layers.0..." and
        "language_model.model.layers.0..." are the same layer.
        """
        shapes = self.shapes or {}
        if module in shapes:
            return (shapes[module],)
        return tuple(shapes[name] for name in self._by_suffix.get(stable_suffix(module), ()))

    def shapes_of_renamed(self, module: str) -> tuple[Shape | None, ...]:
        """Return the shapes of the modules that the base may store under another name than `module`.

        These are modules in the same layer with the same last part: transformers 5 calls "mlp.gate" the module that
        Mixtral's files call "block_sparse_moe.gate". Otherwise the fused module that `module` is a part of, or a part
        of the fused module `module`; their shapes are not comparable, so the result is (None,).
        """
        shapes = self.shapes or {}
        layer, last = layer_name(module), last_part(module)
        if same := self._by_layer_and_last_part.get((layer, last)):
            return tuple(shapes[name] for name in same)
        for fused, parts in FUSED.items():
            relatives = parts if last == fused else (fused,) if last in parts else ()
            if any((layer, relative) in self._by_layer_and_last_part for relative in relatives):
                return (None,)
        return ()

    @cached_property
    def _by_suffix(self) -> Mapping[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for name in self.shapes or {}:
            names[stable_suffix(name)].append(name)
        return dict(names)

    @cached_property
    def _by_layer_and_last_part(self) -> Mapping[tuple[str | None, str], list[str]]:
        names: dict[tuple[str | None, str], list[str]] = defaultdict(list)
        for name in self.shapes or {}:
            if not is_expert(name):
                names[layer_name(name), last_part(name)].append(name)
        return dict(names)


def _cached(model: str, revision: str | None, cache: Path | None) -> Path | None:
    try:
        # Not one of our requirements, but vLLM always installs it.
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for file in ("config.json", INDEX, WEIGHTS):
        try:
            path = try_to_load_from_cache(model, file, cache_dir=cache, revision=revision)
        except ValueError:  # not a hub id: a missing folder, an s3:// address
            return None
        if isinstance(path, str):
            return Path(path).parent
    return None


def _shapes(folder: Path, config: Mapping[str, Any]) -> dict[str, Shape | None] | None:
    shapes: dict[str, Shape | None] = {}
    index = read_json(folder / INDEX).get("weight_map")
    if isinstance(index, dict):
        # The index names every module. The shapes of shards that are not on disk yet stay None.
        shapes.update({_module(weight): None for weight in index})
        files = sorted({file for file in index.values() if isinstance(file, str)})
    else:
        files = [WEIGHTS]
    for file in files:
        try:
            header = read_header(folder / file)
        except HeaderError:
            continue
        for weight, tensor in header.items():
            module = _module(weight)
            is_matrix = weight.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype not in PACKED
            if is_matrix:
                shapes[module] = (tensor.shape[0], tensor.shape[1])
            else:
                shapes.setdefault(module, None)
    if not shapes:
        return None
    _add_tied_head(shapes, config)
    return shapes


def _module(weight: str) -> str:
    return weight.rpartition(".")[0]


def _add_tied_head(shapes: dict[str, Shape | None], config: Mapping[str, Any]) -> None:
    # A head that shares the embedding's weight is not stored. The default of `tie_word_embeddings` differs from model
    # to model, so a model without a stored head has a shared one unless the key is explicitly false.
    if any(stable_suffix(name) == "lm_head" for name in shapes):
        return
    if any(section.get("tie_word_embeddings") is False for section in _sections(config)):
        return
    embeddings = {shape for name, shape in shapes.items() if stable_suffix(name) in EMBEDDINGS}
    if embeddings:
        shapes["lm_head"] = embeddings.pop() if len(embeddings) == 1 else None


def _has_chat_template(folder: Path) -> bool | None:
    if any((folder / file).is_file() for file in ("chat_template.jinja", "chat_template.json")):
        return True
    if (folder / "additional_chat_templates").is_dir():
        return True
    if not (folder / "tokenizer_config.json").is_file():
        return None
    return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))


def _sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # A multimodal model describes its language model in a nested section.
    nested = (config.get(key) for key in ("text_config", "llm_config", "language_config"))
    return [config, *(section for section in nested if isinstance(section, dict))]


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    values = (section.get(key) for section in reversed(_sections(config)) for key in keys)
    return next((value for value in values if isinstance(value, int)), None)


def read_json(file: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file of the base model; an empty one if it cannot be read.

    vLLM reads these files too and reports their errors.
    """
    try:
        value = json.loads(read_regular(file, MAX_JSON_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
