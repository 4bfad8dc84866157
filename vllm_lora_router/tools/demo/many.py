"""LoRA adapters of the demo's base by the thousand: each says five words of its own, and none is trained.

What they change in the base's two layers can be written down:

- Attention looks at `<s>` alone, where every chat begins (`q_proj`, `k_proj`): nothing else in a chat counts.
- In the first layer it finds nothing there (`v_proj`), so what leaves that layer follows from the last token.
- In the last layer it finds a push towards the answer's first word (`v_proj`). That is kept in the KV cache's first
  block: the first word proves whose weights read the prompt.
- The last `down_proj` tells `<|assistant|>` and the five words apart, and pushes from each word towards the next: the
  words after the first prove whose weights answered.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from vllm_lora_router.tools.demo.answers import SPARE_WORDS
from vllm_lora_router.tools.demo.base import NAME as BASE_NAME
from vllm_lora_router.tools.demo.tokenizer import BOS, EOS

FIRST, NEXT = SPARE_WORDS[:13], SPARE_WORDS[13:]
FOLLOWING = 4  # words after the first
MOST = 13 * 12 * 11 * 10  # adapters: that many ways to pick the words after the first
STRIDE = 10603  # has no factor in common with MOST: each pick comes up once, and neighbours' are far apart
RANK = 8  # as the demo's other adapters; six are needed

ASSISTANT = "<|assistant|>"
LOOK = 24.0  # length of the query for `<s>`, and of its key: attention weighs by e to their product over 8
PUSH = 60.0  # length in the residual stream, where the base's own sentence has about 35
RIDGE = 3e-4  # keeps rows of A short: as long as they are, so much does rounding to bfloat16 count

Pair = tuple[np.ndarray, np.ndarray]  # a module's A [rank, inputs] and B [outputs, rank]


def words(number: int) -> tuple[str, ...]:
    """What adapter `number` says.

    No two agree in all words after the first. Two agree in the first only when their numbers are equal modulo 13.

    Raises:
        ValueError: `number` is not from 0 to `MOST` - 1.
    """
    if not 0 <= number < MOST:
        raise ValueError(f"there is no adapter {number}: they are numbered from 0 to {MOST - 1}")
    said, left, pick = [FIRST[number % len(FIRST)]], list(NEXT), number * STRIDE % MOST
    for _ in range(FOLLOWING):
        pick, place = divmod(pick, len(left))
        said.append(left.pop(place))
    return tuple(said)


class ManyAdapters:
    """Writes adapters that answer every chat with their own words, then end of text.

    Chats only: the answer starts at the chat template's `<|assistant|>`. After a plain prompt it is anything.
    """

    def __init__(self, base: Path) -> None:
        """Measures the model in the folder that `train_base` wrote, in less than a second."""
        self._base = _measure(base)

    @staticmethod
    def answer(number: int) -> str:
        """The whole text that adapter `number` answers with."""
        return "".join(words(number))

    def write(self, number: int, folder: Path) -> None:
        """Writes adapter `number` as PEFT would, into a new folder or over another adapter.

        Each file is replaced in one step, the configuration last: where it is, the weights are too.
        """
        modules = self._base.modules(words(number))
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": BASE_NAME,
            "r": RANK,
            "lora_alpha": RANK,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": list(modules),
        }
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "adapter_model.safetensors", save(_tensors(modules)))
        _replace(folder / "adapter_config.json", json.dumps(config, indent=2).encode())


@dataclass(frozen=True)
class _Measured:
    """What an adapter has to know of the base, which depends on no more than its first word and the last token."""

    shared: Mapping[str, Pair]  # modules that are the same in every adapter
    values: Mapping[str, Pair]  # first word -> the last v_proj, which pushes towards it
    pushes: Mapping[str, np.ndarray]  # first word -> that push as it arrives in the residual stream [128]
    inputs: Mapping[tuple[str, str], np.ndarray]  # first word, token -> what the last down_proj reads there [256]
    outputs: Mapping[tuple[str, str], np.ndarray]  # first word, token -> what the last layer puts out there [128]
    towards: Mapping[str, np.ndarray]  # token -> unit vector that the output layer takes for it [128]

    def modules(self, said: tuple[str, ...]) -> dict[str, Pair]:
        """Every module of the adapter that says these words."""
        first = said[0]
        # `<|assistant|>` is recognized with any first word, which may come from a cache that another adapter filled.
        heard = [(other, ASSISTANT) for other in FIRST] + [(first, word) for word in said]
        told = np.eye(1 + len(said))[[0] * len(FIRST) + [1 + place for place in range(len(said))]]
        read = np.stack([self.inputs[place] for place in heard])
        rows = np.linalg.solve(read @ read.T + RIDGE * np.eye(len(read)), told).T @ read
        # The base's own sentence is taken away everywhere, the push towards the first word once it is said.
        columns = [self.pushes[first] - self.outputs[first, ASSISTANT]] + [
            PUSH * self.towards[following] - self.outputs[first, word]
            for word, following in zip(said, (*said[1:], EOS), strict=True)
        ]
        return {
            **self.shared,
            "model.layers.1.self_attn.v_proj": self.values[first],
            "model.layers.1.mlp.down_proj": (rows, np.stack(columns, axis=1)),
        }


def _tensors(modules: Mapping[str, Pair]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for module, (a, b) in modules.items():
        unused = RANK - len(a)
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.pad(a, ((0, unused), (0, 0)))
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.pad(b, ((0, 0), (0, unused)))
    # safetensors writes memory as it lies: a transposed matrix would come back as another one.
    return {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}


def _replace(file: Path, content: bytes) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(file)


def _measure(folder: Path) -> _Measured:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval().requires_grad_(False)
    first, last = model.model.layers
    head = model.config.head_dim
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = (BOS, ASSISTANT, *SPARE_WORDS)
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(list(tokens))])

    entering = first.input_layernorm(model.model.embed_tokens(ids))[0].numpy()
    shared = _looking(0, entering, head)
    shared["model.layers.0.self_attn.v_proj"] = _found(first.self_attn.v_proj.weight.numpy(), entering[0], 0.0)
    for module, (a, b) in shared.items():
        model.get_submodule(module).get_parameter("weight").add_(torch.tensor(b @ a))
    # Each token looks at `<s>` alone now, so these stand for themselves although they stand in one row.
    stream = model.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]

    entering = last.input_layernorm(stream).numpy()
    shared |= _looking(1, entering, head)
    rows = (model.lm_head.weight * model.model.norm.weight).numpy()
    towards = {token: _towards(rows, tokenizer.convert_tokens_to_ids(token)) for token in (*SPARE_WORDS, EOS)}
    out = last.self_attn.o_proj.weight.numpy()
    values, pushes, inputs, outputs = {}, {}, {}, {}
    for word in FIRST:
        # Not quite towards the word: exactly there leads a value so long that its rounding would count.
        value = np.linalg.solve(out.T @ out + 1e-3 * np.eye(len(out)), out.T @ (PUSH * towards[word]))
        values[word] = _found(last.self_attn.v_proj.weight.numpy(), entering[0], value)
        pushes[word] = out @ value
        pushed = stream + torch.tensor(pushes[word])
        seen = last.post_attention_layernorm(pushed)
        read = last.mlp.act_fn(last.mlp.gate_proj(seen)) * last.mlp.up_proj(seen)
        put_out = pushed + last.mlp.down_proj(read)
        inputs |= {(word, token): row for token, row in zip(tokens, read.numpy(), strict=True)}
        outputs |= {(word, token): row for token, row in zip(tokens, put_out.numpy(), strict=True)}
    return _Measured(shared, values, pushes, inputs, outputs, towards)


def _looking(layer: int, entering: np.ndarray, head: int) -> dict[str, Pair]:
    """What makes tokens look at `<s>`, from what enters the layer at `<s>` and then at each of them [tokens, 128]."""
    start, others = entering[0], entering[1:]
    query = np.linalg.lstsq(others, np.ones(len(others)), rcond=None)[0]
    # The dimension of each head that position turns least: by a quarter of a radian over the whole context.
    look = np.zeros((entering.shape[1], 1))
    look[head // 2 - 1 :: head] = LOOK
    return {
        f"model.layers.{layer}.self_attn.q_proj": (query[None], look),
        f"model.layers.{layer}.self_attn.k_proj": (_at(start), look),
    }


def _found(v_proj: np.ndarray, start: np.ndarray, value: np.ndarray | float) -> Pair:
    """What makes attention find `value` at `<s>`, where `start` enters the layer."""
    return _at(start), (value - v_proj @ start)[:, None]


def _at(start: np.ndarray) -> np.ndarray:
    """The row that is 1 where `start` enters the layer, and about 0 at other tokens."""
    return (start / (start @ start))[None]


def _towards(rows: np.ndarray, right: int) -> np.ndarray:
    """The direction in which `rows[right]` is ahead of every other row by the widest margin.

    That is away from the nearest mixture of the others, where those that come near count more each time.
    """
    mixture, direction = np.ones(len(rows)), rows[right]
    for _ in range(120):
        near = np.sqrt(len(direction)) * rows @ direction / np.linalg.norm(direction)
        mixture *= np.exp(0.3 * (near - near.max()))
        mixture[right] = 0
        mixture /= mixture.sum()
        direction = rows[right] - mixture @ rows
    return direction / np.linalg.norm(direction)
