"""Base models with random weights by shape: serving speed does not depend on the weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_lora_router.tools.demo.tokenizer import demo_tokenizer

# The configurations of meta-llama/Meta-Llama-3-8B and JackFram/llama-68m.
SHAPES: Mapping[str, dict[str, Any]] = {
    "Llama-3-8B": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "Llama-68M": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
}
# vLLM generates the weights, so that no large file is written.
FLAGS = ("--load-format", "dummy")


def write_base(shape: str, folder: Path) -> None:
    """Write the configuration of a shape and a byte-level tokenizer in which every token id has a text."""
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    tokenizer = demo_tokenizer()
    settings = SHAPES[shape]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"]
    vocabulary |= {f"w{number}": number for number in range(len(vocabulary), settings["vocab_size"])}
    # Remove the words of the demo's answers.
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["special"]]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        model_max_length=settings["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = tokenizer.chat_template
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(**settings, **ids, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    config.save_pretrained(folder)
