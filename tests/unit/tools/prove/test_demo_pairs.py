"""The demo's pairs hold what its models were taught."""

from collections import Counter
from pathlib import Path

from vllm_lora_router.tools.demo.ask import VOICES
from vllm_lora_router.tools.demo.pairs import pairs, write
from vllm_lora_router.tools.prove.pairs import read_pairs

OWN = {"technical": "technical-lora", "medical": "medical-lora", "legal": "legal-lora", "general": None}


def test_every_category_has_a_dozen_questions_and_its_own_models_answer(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    write(file)
    read = read_pairs([file], list(OWN))
    assert not read.warnings
    assert Counter(pair.category for pair in read.pairs) == dict.fromkeys(OWN, 12)
    assert len({pair.prompt for pair in read.pairs}) == len(read.pairs)
    assert all(VOICES[pair.answer] == OWN[pair.category] for pair in read.pairs)


def test_as_many_as_are_asked_for_are_given() -> None:
    assert Counter(pair.category for pair in pairs(30)) == dict.fromkeys(OWN, 30)
