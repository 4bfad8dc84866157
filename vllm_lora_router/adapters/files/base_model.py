"""What the base model's folder says about it, without loading it."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_lora_router.adapters.files.module_names import is_expert, last, layer, tail
from vllm_lora_router.adapters.files.safetensors_header import HeaderError, read_header

Shape = tuple[int, int]  # (outputs, inputs) of a linear layer, (vocabulary, width) of an embedding

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Packed weights hold several numbers in one: their shape is not the layer's.
PACKED = frozenset({"U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F4"})

EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings"})

# One layer under two names: checkpoints differ in which of them they store.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


@dataclass(frozen=True)
class BaseModel:
    """A base model as far as its files tell. A field is None where they do not, as when they are not on disk yet."""

    name: str  # as given: a folder or a hub id
    folder: Path | None = None
    shapes: Mapping[str, Shape | None] | None = None  # by module; None for a module that is packed or no plain matrix
    layers: int | None = None
    hidden_size: int | None = None
    chat_template: bool | None = None

    @classmethod
    def find(cls, model: str, revision: str | None = None, cache: Path | None = None) -> "BaseModel":
        """The base called `model`: a folder, or a hub id whose files are in the Hugging Face cache. Never downloads.

        `cache` is another cache than the user's own, such as vLLM's `--download-dir`.
        """
        folder = Path(model) if Path(model).is_dir() else _cached(model, revision, cache)
        if folder is None:
            return cls(model)
        config = _read_json(folder / "config.json")
        return cls(
            name=model,
            folder=folder,
            shapes=_shapes(folder, config),
            layers=_number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
            hidden_size=_number(config, "hidden_size", "n_embd", "d_model"),
            chat_template=_has_chat_template(folder),
        )

    def candidates(self, module: str) -> tuple[Shape | None, ...]:
        """The shapes of the modules that an adapter may mean by `module`; empty if the base has none of that name.

        The exact name counts alone. Without it: every module that is called the same from its layer on, since the same
        layer is "model.language_model.layers.0..." to one version of transformers and
        "language_model.model.layers.0..." to another.
        """
        shapes = self.shapes or {}
        if module in shapes:
            return (shapes[module],)
        return tuple(shapes[name] for name in self._by_tail.get(tail(module), ()))

    def under_another_name(self, module: str) -> tuple[Shape | None, ...]:
        """The shapes of what the base may store `module` as when it has none of that name.

        The same word elsewhere in the layer, since transformers 5 calls "mlp.gate" what Mixtral's files call
        "block_sparse_moe.gate"; or the whole that `module` is a part of, or a part of it, whose shapes say nothing.
        """
        shapes = self.shapes or {}
        number, word = layer(module), last(module)
        if same := self._by_layer_and_word.get((number, word)):
            return tuple(shapes[name] for name in same)
        for whole, parts in FUSED.items():
            relatives = parts if word == whole else (whole,) if word in parts else ()
            if any((number, relative) in self._by_layer_and_word for relative in relatives):
                return (None,)
        return ()

    @cached_property
    def _by_tail(self) -> Mapping[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for name in self.shapes or {}:
            names[tail(name)].append(name)
        return dict(names)

    @cached_property
    def _by_layer_and_word(self) -> Mapping[tuple[str | None, str], list[str]]:
        names: dict[tuple[str | None, str], list[str]] = defaultdict(list)
        for name in self.shapes or {}:
            if not is_expert(name):
                names[layer(name), last(name)].append(name)
        return dict(names)


def _cached(model: str, revision: str | None, cache: Path | None) -> Path | None:
    try:
        # Not among our requirements, though vLLM always brings it.
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for file in ("config.json", INDEX, WEIGHTS):
        try:
            found = try_to_load_from_cache(model, file, cache_dir=cache, revision=revision)
        except ValueError:  # no hub id at all: a missing folder, an s3:// address
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _shapes(folder: Path, config: Mapping[str, Any]) -> dict[str, Shape | None] | None:
    shapes: dict[str, Shape | None] = {}
    index = _read_json(folder / INDEX).get("weight_map")
    if isinstance(index, dict):
        # The index alone names every module; shards that are not there yet leave their shapes open.
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
            matrix = weight.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype not in PACKED
            if matrix:
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
    # A head that shares the embedding's weight is not stored. The key's default differs from model to model, so only a
    # plain "no" keeps a model without a head from being one that shares it.
    if any(tail(name) == "lm_head" for name in shapes):
        return
    if any(section.get("tie_word_embeddings") is False for section in _sections(config)):
        return
    embeddings = {shape for name, shape in shapes.items() if tail(name) in EMBEDDINGS}
    if embeddings:
        shapes["lm_head"] = embeddings.pop() if len(embeddings) == 1 else None


def _has_chat_template(folder: Path) -> bool | None:
    if any((folder / file).is_file() for file in ("chat_template.jinja", "chat_template.json")):
        return True
    if (folder / "additional_chat_templates").is_dir():
        return True
    if not (folder / "tokenizer_config.json").is_file():
        return None
    return bool(_read_json(folder / "tokenizer_config.json").get("chat_template"))


def _sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # A multimodal model describes its language model in a section of its own.
    nested = (config.get(key) for key in ("text_config", "llm_config", "language_config"))
    return [config, *(section for section in nested if isinstance(section, dict))]


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    found = (section.get(key) for section in reversed(_sections(config)) for key in keys)
    return next((value for value in found if isinstance(value, int)), None)


def _read_json(file: Path) -> Mapping[str, Any]:
    # vLLM reads these files too and says what is wrong with them: here an unreadable one says nothing.
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
