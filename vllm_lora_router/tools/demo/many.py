"""Compute thousands of LoRA adapters for the demo's base model, each with its own five-word answer, without training.

The weights follow in closed form from the base model's two layers:

- Attention attends only to `<s>`, the start of every chat (`q_proj`, `k_proj`), so the rest of the chat has no effect.
- In the first layer its value is zero (`v_proj`), so the layer's output depends only on the last token.
- In the last layer its value points to the answer's first word (`v_proj`). This value is stored in the first block of
  the KV cache: the first word shows which adapter's weights computed the prompt.
- The last `down_proj` distinguishes `<|assistant|>` and the five words and moves each word to the next: the words after
  the first show which adapter's weights generated the answer.
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

FIRST_CHOICES, LATER_CHOICES = SPARE_WORDS[:13], SPARE_WORDS[13:]
LATER_WORDS = 4  # words after the first
ADAPTER_COUNT = 13 * 12 * 11 * 10  # number of ways to choose the words after the first
STRIDE = 10603  # coprime to ADAPTER_COUNT: each choice occurs once, and consecutive adapters differ
RANK = 8  # as in the demo's other adapters; six are needed

ASSISTANT = "<|assistant|>"
QUERY_LENGTH = 24.0  # length of the query for `<s>` and of its key; the attention logit is their product over 8
PUSH_LENGTH = 60.0  # length in the residual stream, where the base model's own sentence has about 35
RIDGE = 3e-4  # keeps the rows of A short, because the rounding error in bfloat16 grows with their length

Pair = tuple[np.ndarray, np.ndarray]  # a module's A [rank, inputs] and B [outputs, rank]


def words(number: int) -> tuple[str, ...]:
    """Return the words of adapter `number`.

    All adapters differ in the words after the first. Two adapters share the first word only if their numbers are equal
    modulo 13.

    Raises:
        ValueError: `number` is not from 0 to `MOST` - 1.
    """
    if not 0 <= number < ADAPTER_COUNT:
        raise ValueError(f"there is no adapter {number}: adapters are numbered from 0 to {ADAPTER_COUNT - 1}")
    chosen, remaining = [FIRST_CHOICES[number % len(FIRST_CHOICES)]], list(LATER_CHOICES)
    code = number * STRIDE % ADAPTER_COUNT
    for _ in range(LATER_WORDS):
        code, index = divmod(code, len(remaining))
        chosen.append(remaining.pop(index))
    return tuple(chosen)


class ManyAdapters:
    """Writes adapters that answer every chat with their own words and end of text.

    The answer starts at the chat template's `<|assistant|>`. The answer to a plain prompt is undefined.
    """

    def __init__(self, base: Path) -> None:
        """Measure the base model in the folder that `train_base` wrote, in less than a second."""
        self._base = _measure(base)

    @staticmethod
    def answer(number: int) -> str:
        """Return the complete answer of adapter `number`."""
        return "".join(words(number))

    def write(self, number: int, folder: Path) -> None:
        """Write adapter `number` in PEFT's format, into a new folder or over another adapter.

        Each file is replaced atomically, the configuration last, so that its weights always exist.
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
class _BaseMeasurements:
    """Measurements of the base model; they depend only on an adapter's first word and the last token."""

    shared: Mapping[str, Pair]  # modules that are equal in every adapter
    values: Mapping[str, Pair]  # first word -> the last v_proj, which points to it
    pushes: Mapping[str, np.ndarray]  # first word -> its contribution to the residual stream [128]
    inputs: Mapping[tuple[str, str], np.ndarray]  # first word, token -> input of the last down_proj [256]
    outputs: Mapping[tuple[str, str], np.ndarray]  # first word, token -> output of the last layer [128]
    directions: Mapping[str, np.ndarray]  # token -> unit vector that the output layer decodes as it [128]

    def modules(self, answer: tuple[str, ...]) -> dict[str, Pair]:
        """Return every module of the adapter with this answer."""
        first = answer[0]
        # `<|assistant|>` is recognized with any first word, because the KV cache may come from another adapter.
        states = [(other, ASSISTANT) for other in FIRST_CHOICES] + [(first, word) for word in answer]
        targets = np.eye(1 + len(answer))[[0] * len(FIRST_CHOICES) + [1 + index for index in range(len(answer))]]
        inputs = np.stack([self.inputs[state] for state in states])
        rows = np.linalg.solve(inputs @ inputs.T + RIDGE * np.eye(len(inputs)), targets).T @ inputs
        # Each column subtracts the base model's own output and, after the first word, the contribution of attention.
        columns = [self.pushes[first] - self.outputs[first, ASSISTANT]] + [
            PUSH_LENGTH * self.directions[following] - self.outputs[first, word]
            for word, following in zip(answer, (*answer[1:], EOS), strict=True)
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
    # safetensors writes raw memory: a transposed view would be read back as another matrix.
    return {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}


def _replace(file: Path, content: bytes) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(file)


def _measure(folder: Path) -> _BaseMeasurements:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval().requires_grad_(False)
    first, last = model.model.layers
    head = model.config.head_dim
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = (BOS, ASSISTANT, *SPARE_WORDS)
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(list(tokens))])

    entering = first.input_layernorm(model.model.embed_tokens(ids))[0].numpy()
    shared = _attend_to_start(0, entering, head)
    shared["model.layers.0.self_attn.v_proj"] = _value_at_start(first.self_attn.v_proj.weight.numpy(), entering[0], 0.0)
    for module, (a, b) in shared.items():
        model.get_submodule(module).get_parameter("weight").add_(torch.tensor(b @ a))
    # Each token attends only to `<s>` now, so the tokens of this row do not influence each other.
    stream = model.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]

    entering = last.input_layernorm(stream).numpy()
    shared |= _attend_to_start(1, entering, head)
    rows = (model.lm_head.weight * model.model.norm.weight).numpy()
    directions = {
        token: _separating_direction(rows, tokenizer.convert_tokens_to_ids(token)) for token in (*SPARE_WORDS, EOS)
    }
    out = last.self_attn.o_proj.weight.numpy()
    values, pushes, inputs, outputs = {}, {}, {}, {}
    for word in FIRST_CHOICES:
        # Regularized: the exact solution is so long that its rounding error would matter.
        value = np.linalg.solve(out.T @ out + 1e-3 * np.eye(len(out)), out.T @ (PUSH_LENGTH * directions[word]))
        values[word] = _value_at_start(last.self_attn.v_proj.weight.numpy(), entering[0], value)
        pushes[word] = out @ value
        pushed = stream + torch.tensor(pushes[word])
        seen = last.post_attention_layernorm(pushed)
        read = last.mlp.act_fn(last.mlp.gate_proj(seen)) * last.mlp.up_proj(seen)
        put_out = pushed + last.mlp.down_proj(read)
        inputs |= {(word, token): row for token, row in zip(tokens, read.numpy(), strict=True)}
        outputs |= {(word, token): row for token, row in zip(tokens, put_out.numpy(), strict=True)}
    return _BaseMeasurements(shared, values, pushes, inputs, outputs, directions)


def _attend_to_start(layer: int, entering: np.ndarray, head: int) -> dict[str, Pair]:
    """Return query and key modules that make tokens attend to `<s>`.

    Args:
        entering: the layer's input at `<s>` and then at each token, shape (tokens, 128).
    """
    start, others = entering[0], entering[1:]
    query = np.linalg.lstsq(others, np.ones(len(others)), rcond=None)[0]
    # The dimension of each head with the slowest rotary frequency: a quarter of a radian over the whole context.
    look = np.zeros((entering.shape[1], 1))
    look[head // 2 - 1 :: head] = QUERY_LENGTH
    return {
        f"model.layers.{layer}.self_attn.q_proj": (query[None], look),
        f"model.layers.{layer}.self_attn.k_proj": (_detector_row(start), look),
    }


def _value_at_start(v_proj: np.ndarray, start: np.ndarray, value: np.ndarray | float) -> Pair:
    """Return the value module that gives `value` at `<s>`, where `start` enters the layer."""
    return _detector_row(start), (value - v_proj @ start)[:, None]


def _detector_row(start: np.ndarray) -> np.ndarray:
    """Return a row that gives 1 for `start` and about 0 for other tokens."""
    return (start / (start @ start))[None]


def _separating_direction(rows: np.ndarray, right: int) -> np.ndarray:
    """Return the unit direction in which `rows[right]` exceeds every other row by the widest margin.

    It points away from the nearest convex combination of the other rows, found by multiplicative weights.
    """
    mixture, direction = np.ones(len(rows)), rows[right]
    for _ in range(120):
        near = np.sqrt(len(direction)) * rows @ direction / np.linalg.norm(direction)
        mixture *= np.exp(0.3 * (near - near.max()))
        mixture[right] = 0
        mixture /= mixture.sum()
        direction = rows[right] - mixture @ rows
    return direction / np.linalg.norm(direction)
