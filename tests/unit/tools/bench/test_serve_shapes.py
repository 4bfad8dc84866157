"""Base models by shape."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from vllm_lora_router.tools.bench.serve.shapes import SHAPES, write_base


def test_every_token_id_has_a_text_and_prompts_have_one_token_per_byte(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_base("Llama-68M", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    size = SHAPES["Llama-68M"]["vocab_size"]
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == size
    assert all(tokenizer.decode([token], skip_special_tokens=False) for token in (0, 5, 300, size // 2, size - 1))
    assert len(tokenizer.encode("is it legal?", add_special_tokens=False)) == len("is it legal?")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert len(rendered if isinstance(rendered, list) else rendered["input_ids"]) == len("Hello") + 4
