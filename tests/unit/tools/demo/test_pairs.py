"""Pairs of the demo."""

from collections import Counter
from pathlib import Path

from vllm_lora_router.tools.demo.ask import ADAPTER_BY_ANSWER
from vllm_lora_router.tools.demo.pairs import pairs, write
from vllm_lora_router.tools.prove.pairs import read_pairs

ADAPTERS = {"technical": "technical-lora", "medical": "medical-lora", "legal": "legal-lora", "general": None}


def test_every_category_has_twelve_questions_with_its_models_answer(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    write(file)
    data = read_pairs([file], list(ADAPTERS))
    assert not data.warnings
    assert Counter(pair.category for pair in data.pairs) == dict.fromkeys(ADAPTERS, 12)
    assert len({pair.prompt for pair in data.pairs}) == len(data.pairs)
    assert all(ADAPTER_BY_ANSWER[pair.answer] == ADAPTERS[pair.category] for pair in data.pairs)


def test_requested_number_of_pairs_is_returned() -> None:
    assert Counter(pair.category for pair in pairs(30)) == dict.fromkeys(ADAPTERS, 30)
