"""The answer cache: keys and values take bounded memory, and tenants never share answers."""

import tracemalloc

from vllm_lora_router.classifiers.mcp.answer_cache import AnswerCache
from vllm_lora_router.classifiers.mcp.answers import CachePolicy
from vllm_lora_router.classifiers.mcp.arguments import MAX_TEXT_CHARACTERS
from vllm_lora_router.types import Classification, Client, Overrides, Query

BY_TEXT = CachePolicy(by="text", seconds=60)
BY_TENANT = CachePolicy(by="tenant", seconds=60)


def classification(category: str, prompt: str | None = None) -> Classification:
    return Classification(
        category, 0.9, {category: 0.9}, "probability", 0.6, True, overrides=Overrides(system_prompt=prompt)
    )


def test_an_answer_is_found_by_text_and_tenant() -> None:
    cache = AnswerCache()
    acme, globex, anonymous = (Client(tenant=tenant) for tenant in ("acme", "globex", None))
    cache.put(Query("fever", client=acme), classification("medical"), BY_TEXT)
    stored = cache.get(Query("fever", client=acme))
    assert stored is not None and stored.category == "medical" and stored.cached
    for query in (Query("fever", client=globex), Query("fever", client=anonymous), Query("law", client=acme)):
        assert cache.get(query) is None
    cache.put(Query("any", client=anonymous), classification("legal"), BY_TENANT)
    assert cache.get(Query("other", client=anonymous)) is not None
    assert cache.get(Query("other", client=Client(tenant="None"))) is None
    assert cache.get(Query("half \ud83d")) is not None  # found by tenant


def test_long_texts_do_not_stay_in_memory() -> None:
    cache = AnswerCache()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(40):
            cache.put(Query(f"{number} " + "x" * 1_000_000), classification("medical"), BY_TEXT)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cache) == 40 and after - before < 1_000_000


def test_texts_that_the_tool_sees_alike_share_an_answer() -> None:
    cache, half = AnswerCache(), "x" * (MAX_TEXT_CHARACTERS // 2)
    cache.put(Query(f"{half}first{half}"), classification("medical"), BY_TEXT)
    assert cache.get(Query(f"{half}second{half}")) is not None
    assert cache.get(Query(f"{half}first{half}y")) is None


def test_the_size_of_all_answers_is_bounded() -> None:
    cache = AnswerCache(max_bytes=1_000_000)
    for number in range(200):
        cache.put(Query(f"{number}"), classification("medical", "p" * 30_000), BY_TEXT)
    assert cache.used_bytes <= 1_000_000 and 20 < len(cache) < 40
    assert cache.get(Query("199")) is not None and cache.get(Query("0")) is None
    cache.put(Query("huge"), classification("medical", "p" * 2_000_000), BY_TEXT)
    assert cache.get(Query("huge")) is None and len(cache) > 20
