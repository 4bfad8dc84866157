"""Replicas agree: the adapter of a turn does not depend on the earlier turns that a process has classified."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.routing import affinity_state
from vllm_lora_router.routing.ab_assignment import MAX_BEGINNING_CHARACTERS, assignment_key
from vllm_lora_router.routing.affinity_state import (
    AcceptedClassification,
    TurnCache,
    accepted_classification,
    digest,
    digests,
    is_decisive,
    next_topic,
    replay_turns,
)
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import ActiveTopic, Classification, Client, Method, Query, Step

if TYPE_CHECKING:
    from .conftest import Route

CATEGORIES = ("technical", "medical", "legal")
LONGEST = 90  # turns; only 64 of them count


class RandomScores:
    """A classifier whose scores for a text are random and always the same."""

    method: Method = "domain"
    reads = frozenset({"text"})

    def __init__(self, fingerprint: str = "x") -> None:
        self.fingerprint = fingerprint
        self.texts: list[str] = []

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        (query,) = queries
        self.texts.append(query.text)
        return [classification_of(query.text)]


def classification_of(text: str) -> Classification:
    generator = random.Random(text)
    # Of ten texts, eight are accepted by no category, one is clear, and one is close.
    best, second = generator.sample(CATEGORIES, 2)
    kind = generator.random()
    score = 0.5 if kind < 0.8 else generator.uniform(0.6, 0.8)
    scores = {best: score, second: score - generator.uniform(0.0, 0.13 if kind > 0.9 else 0.5)}
    return Classification(best, score, scores, "probability", 0.6, score >= 0.6)


def replica(router: Router, before: Router | None = None) -> Router:
    """Return a router of a process that has just started, or of one that has reloaded its configuration."""
    classifiers = Classifiers(Cascade([RandomScores()], 60_000), ())
    return Router(router.loaded, router.base, classifiers, before)


def random_conversation(generator: random.Random) -> list[str]:
    turns = [f"text {generator.randrange(200)}" for _ in range(generator.randint(2, LONGEST))]
    # A client may delete or repeat turns.
    return [*turns, *generator.choices(turns, k=3)]


@pytest.fixture
def conversations(request: pytest.FixtureRequest) -> list[list[str]]:
    generator = random.Random(7)
    return [random_conversation(generator) for _ in range(1000 if request.config.getoption("--full") else 50)]


async def test_warm_cold_and_reloaded_replicas_choose_the_same_adapter_in_every_turn(
    router: Route, conversations: list[list[str]]
) -> None:
    generator = random.Random(8)
    built = router()
    for turns in conversations:
        warm = reloaded = replica(built)
        sporadic = replica(built)  # a replica that the load balancer chooses for some turns
        for count in range(1, len(turns) + 1):
            query = Query(turns[count - 1], tuple(turns[:count]))
            if generator.random() < 0.1:
                reloaded = replica(built, reloaded)
            expected = await warm.plan([query])
            others = [replica(built), reloaded, *([sporadic] if generator.random() < 0.3 else [])]
            for other in others:
                plan = await other.plan([query])
                assert (plan.candidates, plan.reason, plan.confidence, plan.active_topic) == (
                    expected.candidates,
                    expected.reason,
                    expected.confidence,
                    expected.active_topic,
                )


def test_the_topic_after_a_decisive_turn_does_not_depend_on_the_topic_before() -> None:
    decisive = undecided = 0
    for number in range(2000):
        result = accepted_classification([Step("domain", 0.1, classification_of(f"text {number}"))])
        if result is not None:
            topics = {
                replay_turns([(1, result)], ActiveTopic(category, 0.7, "domain"), 0.15)[0]
                for category in (*CATEGORIES, "removed")
            }
            assert (len(topics) == 1) == is_decisive(result, 0.15)
            decisive, undecided = decisive + (len(topics) == 1), undecided + (len(topics) > 1)
    assert decisive > 50 < undecided


def test_a_negative_score_of_another_category_makes_no_turn_decisive() -> None:
    classification = Classification("medical", 0.1, {"medical": 0.1, "legal": -0.4}, "similarity", 0.05, True)
    turn = AcceptedClassification("embedding", classification)
    assert not is_decisive(turn, 0.15)
    topic = ActiveTopic("technical", 0.5, "embedding")  # has no score in this turn
    assert next_topic(topic, affinity_state.last_turn(turn, topic), 0.15) == topic


async def test_a_reload_keeps_the_classified_turns_unless_it_changes_their_classification(router: Route) -> None:
    built, others = router(), router(more="router: {text: {drop: [z]}}\n")
    isolated = router(more='router: {tenant: "header:x-tenant", tenant_cache: isolated}\n')
    turns = ("text 1", "text 2", "text 3")
    before: Router | None = None

    async def newly_classified(settings: Router, fingerprint: str) -> list[str]:
        nonlocal before
        classifier = RandomScores(fingerprint)
        before = Router(settings.loaded, settings.base, Classifiers(Cascade([classifier], 1000), ()), before)
        await before.plan([Query("why?", (*turns, "why?"))])
        return classifier.texts[1:]

    unknown = list(reversed(turns))
    assert await newly_classified(built, "x") == unknown
    assert await newly_classified(built, "x") == []
    assert await newly_classified(built, "y") == unknown  # other rules, thresholds or models
    assert await newly_classified(others, "x") == unknown
    assert await newly_classified(isolated, "x") == unknown
    assert await newly_classified(built, "x") == []  # a configuration that is restored


async def test_a_reload_of_a_comment_keeps_the_classified_turns(router: Route) -> None:
    before = router()
    turns = ("the law", "a fever", "why?")
    await before.plan([Query("why?", turns)])
    after = Router.build(router(more="# a comment\n").loaded, before.base, before)
    changed = Router.build(router(("[fever]", "[fever, rash]")).loaded, before.base, before)
    assert after.turns is changed.turns is before.turns
    scopes = [built._conversation_classifier._scope for built in (before, after, changed)]
    cached = [before.turns.get(scope, digest("a fever"), None) is not None for scope in scopes]
    assert (scopes[0] == scopes[1], cached) == (True, [True, True, False])


async def test_unknown_turns_are_classified_backwards_until_one_determines_the_topic(router: Route) -> None:
    clear = next(text for text in map(str, range(1000)) if _is_clear(text))
    unclear = [text for text in map(str, range(1000)) if not classification_of(text).accepted]
    cold = replica(router())
    turns = [*unclear[:30], clear, *unclear[30:41], "why?"]
    plan = await cold.plan([Query("why?", tuple(turns))])
    assert plan.category == classification_of(clear).category
    (classifier,) = cold.classifiers.cascade.classifiers
    assert isinstance(classifier, RandomScores)
    # Seven at a time after the last turn: the second seven contain the decisive turn.
    assert classifier.texts == ["why?", *reversed(turns[-15:-1])]


def _is_clear(text: str) -> bool:
    result = accepted_classification([Step("domain", 0.1, classification_of(text))])
    return result is not None and is_decisive(result, 0.15)


async def test_long_texts_are_hashed_on_another_thread_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    on_thread: list[int] = []

    async def to_thread(call):  # type: ignore[no-untyped-def]
        on_thread.append(1)
        return call()

    monkeypatch.setattr(affinity_state.asyncio, "to_thread", to_thread)
    assert await digests(["a", "b"]) == [digest("a"), digest("b")]
    assert on_thread == []
    long = "é" * 1_000_000
    assert (await digests([long]))[0] == digest(long) != digest(long + "x")
    assert on_thread == [1]


async def test_no_long_text_is_hashed_on_the_event_loop(router: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    blake2b = affinity_state.hashlib.blake2b

    class Recorded:
        def __init__(self, *arguments: object, **options: int) -> None:
            self._hash = blake2b(**options)  # type: ignore[arg-type]

        def update(self, content: bytes) -> None:
            hashed.append(len(content))
            self._hash.update(content)

        def digest(self) -> bytes:
            return self._hash.digest()

    monkeypatch.setattr(affinity_state.hashlib, "blake2b", Recorded)
    long = "x" * 1_000_000
    warm = replica(router())
    await warm.plan([Query(long, (long,))])
    await warm.plan([Query("why?", (long, "why?"))])
    assert max(hashed) == affinity_state.CHUNK_CHARACTERS
    (classifier,) = warm.classifiers.cascade.classifiers
    assert isinstance(classifier, RandomScores)
    assert classifier.texts.count(long) == 1


def test_the_key_of_an_ab_test_hashes_a_bounded_part_of_the_first_message() -> None:
    def key(beginning: str) -> str:
        return assignment_key(Client(), beginning, ["conversation"], "salt", "request").key

    same = "x" * MAX_BEGINNING_CHARACTERS
    assert key(same) == key(same + "y") != key(same[:-1])


def test_a_turn_of_a_client_is_not_used_for_another_client() -> None:
    turns = TurnCache()
    turns.put(b"scope", digest("text"), b"client", None)
    assert turns.get(b"scope", digest("text"), b"client") == (None,)
    assert turns.get(b"scope", digest("text"), b"other") is None
    assert turns.get(b"other", digest("text"), b"client") is None
