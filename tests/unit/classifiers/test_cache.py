"""The cache answers repeated queries, and keeps classifiers and tenants apart."""

import threading
import tracemalloc
from collections.abc import Sequence

import pytest

from vllm_lora_router.classifiers.cache import CHUNK_CHARACTERS, Cache, CachedClassifier
from vllm_lora_router.types import Classification, Client, Method, Query


class RecordingClassifier:
    """A classifier that records its queries."""

    method: Method = "domain"

    def __init__(self, fingerprint: str = "1", reads: frozenset[str] = frozenset({"text"}), size: int = 1) -> None:
        self.fingerprint, self.reads, self.size = fingerprint, reads, size
        self.queries: list[str] = []

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.queries += [query.text for query in queries]
        scores = {str(number): 0.5 for number in range(self.size)}
        return [Classification(query.text, 0.9, scores, "probability", 0.6, True) for query in queries]


async def test_a_repeated_text_is_classified_once() -> None:
    classifier, cache = RecordingClassifier(), Cache()
    cached = CachedClassifier(classifier, cache)
    for text in ("fever", "law", "fever", "fever"):
        (result,) = await cached.classify([Query(text)])
        assert result.category == text
    assert classifier.queries == ["fever", "law"]
    assert (cache.hits, cache.misses, len(cache)) == (2, 2, 2)


async def test_queries_are_answered_in_order_and_duplicates_are_classified_once() -> None:
    classifier = RecordingClassifier()
    cached = CachedClassifier(classifier, Cache())
    await cached.classify([Query("b")])
    results = await cached.classify([Query("a"), Query("b"), Query("a"), Query("c")])
    assert [classification.category for classification in results] == ["a", "b", "a", "c"]
    assert classifier.queries == ["b", "a", "c"]


async def test_only_the_fields_that_a_classifier_reads_are_part_of_the_key() -> None:
    text_only, text_and_turns = RecordingClassifier(), RecordingClassifier(reads=frozenset({"text", "turns"}))
    for classifier in (text_only, text_and_turns):
        cached = CachedClassifier(classifier, Cache())
        for turns in (("a",), ("b",)):
            await cached.classify([Query("fever", turns)])
    assert (len(text_only.queries), len(text_and_turns.queries)) == (1, 2)


async def test_tenants_do_not_share_entries() -> None:
    classifier = RecordingClassifier()
    cached = CachedClassifier(classifier, Cache())
    acme, globex = (Query("fever", client=Client(tenant=tenant)) for tenant in ("acme", "globex"))
    for query in (acme, globex, Query("fever"), acme, globex):
        await cached.classify([query])
    assert len(classifier.queries) == 3


async def test_classifiers_with_different_fingerprints_do_not_share_entries() -> None:
    cache = Cache()
    before, after = RecordingClassifier("weights 1"), RecordingClassifier("weights 2")
    for classifier in (before, after, before):
        await CachedClassifier(classifier, cache).classify([Query("fever")])
    assert (len(before.queries), len(after.queries)) == (1, 1)


async def test_the_size_is_bounded_and_the_least_recently_used_entries_are_evicted() -> None:
    classifier, cache = RecordingClassifier(), Cache(max_bytes=10_000)
    cached = CachedClassifier(classifier, cache)
    for number in range(100):
        await cached.classify([Query("often")])
        await cached.classify([Query(str(number))])
    assert 0 < cache.used_bytes <= 10_000 and 5 < len(cache) < 15
    assert classifier.queries.count("often") == 1


async def test_a_classification_larger_than_the_cache_is_returned_and_not_stored() -> None:
    classifier, cache = RecordingClassifier(size=1000), Cache(max_bytes=10_000)
    (result,) = await CachedClassifier(classifier, cache).classify([Query("fever")])
    assert result.category == "fever" and len(cache) == 0


async def test_different_turns_never_have_the_same_key() -> None:
    classifier = RecordingClassifier(reads=frozenset({"text", "turns"}))
    cached = CachedClassifier(classifier, Cache())
    queries = [
        *(Query("x", turns) for turns in ((), ("",), ("", ""), ("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c"))),
        Query("x", client=Client(tenant="None")),
        Query("x", client=Client(tenant="")),
        Query("", ("x",)),
    ]
    await cached.classify(queries)
    assert len(classifier.queries) == len(queries)


async def test_long_texts_are_hashed_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    real_key = CachedClassifier._key  # pyright: ignore[reportPrivateUsage]

    def key(self: CachedClassifier, query: Query) -> bytes:
        threads.append(threading.current_thread().name)
        return real_key(self, query)

    monkeypatch.setattr(CachedClassifier, "_key", key)
    classifier = RecordingClassifier()
    cached = CachedClassifier(classifier, Cache())
    long, other = "x\ud83d" * CHUNK_CHARACTERS, "x\ud83d" * CHUNK_CHARACTERS + "y"
    for text in ("short", long, other, long):
        await cached.classify([Query(text)])
    assert [name == threading.current_thread().name for name in threads] == [True, False, False, False]
    assert classifier.queries == ["short", long, other]


async def test_a_key_takes_little_memory_for_a_long_text() -> None:
    cached = CachedClassifier(RecordingClassifier(), Cache())
    text = "é😀" * 2_000_000
    tracemalloc.start()
    try:
        cached._key(Query(text))  # pyright: ignore[reportPrivateUsage]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000  # `repr` of the text took 16 MB, and its bytes another 12 MB


async def test_a_text_with_a_lone_surrogate_is_cached() -> None:
    classifier = RecordingClassifier()
    cached = CachedClassifier(classifier, Cache())
    for _ in range(2):
        await cached.classify([Query("my \ud83d hurts")])
    assert len(classifier.queries) == 1
