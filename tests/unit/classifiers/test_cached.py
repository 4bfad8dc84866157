"""What was classified before is not classified again, and never given to somebody else's question."""

from collections.abc import Sequence

from vllm_lora_router.classifiers.cache import Cache, CachedClassifier
from vllm_lora_router.types import Classification, Client, Method, Query


class Behind:
    """A classifier that remembers what it was asked."""

    method: Method = "domain"

    def __init__(self, fingerprint: str = "1", reads: frozenset[str] = frozenset({"text"}), size: int = 1) -> None:
        self.fingerprint, self.reads, self.size = fingerprint, reads, size
        self.asked: list[str] = []

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.asked += [query.text for query in queries]
        scores = {str(number): 0.5 for number in range(self.size)}
        return [Classification(query.text, 0.9, scores, "probability", 0.6, True) for query in queries]


async def test_the_same_text_is_classified_once() -> None:
    behind, cache = Behind(), Cache()
    cached = CachedClassifier(behind, cache)
    for text in ("fever", "law", "fever", "fever"):
        (found,) = await cached.classify([Query(text)])
        assert found.category == text
    assert behind.asked == ["fever", "law"]
    assert (cache.hits, cache.misses, len(cache)) == (2, 2, 2)


async def test_several_queries_are_answered_in_order_and_equal_ones_asked_once() -> None:
    behind = Behind()
    cached = CachedClassifier(behind, Cache())
    await cached.classify([Query("b")])
    found = await cached.classify([Query("a"), Query("b"), Query("a"), Query("c")])
    assert [one.category for one in found] == ["a", "b", "a", "c"]
    assert behind.asked == ["b", "a", "c"]


async def test_what_a_classifier_does_not_read_makes_no_difference_and_what_it_reads_does() -> None:
    of_text, of_both = Behind(), Behind(reads=frozenset({"text", "turns"}))
    for behind in (of_text, of_both):
        cached = CachedClassifier(behind, Cache())
        for turns in (("a",), ("b",)):
            await cached.classify([Query("fever", turns)])
    assert (len(of_text.asked), len(of_both.asked)) == (1, 2)


async def test_tenants_that_are_kept_apart_gain_nothing_from_what_another_asked() -> None:
    behind = Behind()
    cached = CachedClassifier(behind, Cache(), by_tenant=True)
    acme, globex = (Query("fever", client=Client(tenant=tenant)) for tenant in ("acme", "globex"))
    for query in (acme, globex, Query("fever"), acme, globex):
        await cached.classify([query])
    assert len(behind.asked) == 3


async def test_another_fingerprint_is_another_answer_in_the_same_cache() -> None:
    cache = Cache()
    before, after = Behind("weights 1"), Behind("weights 2")
    for behind in (before, after, before):
        await CachedClassifier(behind, cache).classify([Query("fever")])
    assert (len(before.asked), len(after.asked)) == (1, 1)


async def test_it_is_bounded_in_bytes_and_what_was_not_asked_for_longest_goes() -> None:
    behind, cache = Behind(), Cache(max_bytes=10_000)
    cached = CachedClassifier(behind, cache)
    for number in range(100):
        await cached.classify([Query("often")])
        await cached.classify([Query(str(number))])
    assert 0 < cache.used_bytes <= 10_000 and 5 < len(cache) < 15
    assert behind.asked.count("often") == 1


async def test_an_answer_larger_than_the_cache_is_given_and_not_kept() -> None:
    behind, cache = Behind(size=1000), Cache(max_bytes=10_000)
    (found,) = await CachedClassifier(behind, cache).classify([Query("fever")])
    assert found.category == "fever" and len(cache) == 0


async def test_half_an_emoji_is_a_text_like_any_other() -> None:
    behind = Behind()
    cached = CachedClassifier(behind, Cache())
    for _ in range(2):
        await cached.classify([Query("my \ud83d hurts")])
    assert len(behind.asked) == 1
