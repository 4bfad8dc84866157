"""Votes on a new configuration: how often the shared state is read."""

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import json

from vllm_lora_router.coordination import config_votes
from vllm_lora_router.coordination.config_votes import ConfigVotes, VoteState
from vllm_lora_router.coordination.run_directory import RunDirectory


def test_a_state_that_did_not_change_is_decoded_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It contains the whole configuration, and every process polls it five times a second."""
    decoded: list[type] = []

    def decode(content: bytes, *, type: type) -> Any:
        decoded.append(type)
        return json.decode(content, type=type)

    monkeypatch.setattr(config_votes, "json", SimpleNamespace(decode=decode, encode=json.encode))
    first, second = ConfigVotes(run, "1", 60), ConfigVotes(run, "2", 60)
    first.join(b"a")
    second.join(b"a")
    for _ in range(10):
        assert first.poll()[0].in_effect.content == second.poll()[0].in_effect.content == b"a"
    assert decoded.count(VoteState) == 2
    second.propose(b"b", requested=True)
    assert [(pending := votes.poll()[0].pending) and pending.content for votes in (first, second)] == [b"b", b"b"]
    assert decoded.count(VoteState) == 4
