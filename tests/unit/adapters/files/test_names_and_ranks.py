"""What an adapter may be called, and what rank the engine must allow."""

import pytest

from vllm_lora_router.adapters.files.ranks import rank_limit
from vllm_lora_router.adapters.files.vllm_limits import refuse_reason


@pytest.mark.parametrize("name", ["medical-lora", "acme/medical v2", "医療", "Text", "auto-lora"])
def test_a_plain_name_is_fine(name: str) -> None:
    assert refuse_reason(name, {"acme/tiny"}, {"MoM", "auto"}) is None


@pytest.mark.parametrize("name", ["text", "image", "audio", "video", "input"])
def test_a_name_that_vllm_would_apply_by_itself_is_refused_and_the_user_is_told_why(name: str) -> None:
    reason = refuse_reason(name, {"acme/tiny"}, {"MoM", "auto"})
    assert reason is not None
    assert f"by itself to chat requests for the base model that have '{name}' content" in reason
    assert f"'{name}-lora'" in reason


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("acme/tiny", "the base model's served name"),
        ("MoM", "asks the router to choose"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("medical\nlora", "a line break or a control character"),
        ("medical\u2028lora", "a line break or a control character"),
        ("medical\x00", "a line break or a control character"),
        (" medical", "write 'medical'"),
        ("medical\u00a0", "write 'medical'"),
    ],
)
def test_a_name_that_would_not_work_is_refused_with_the_reason(name: str, why: str) -> None:
    reason = refuse_reason(name, {"acme/tiny"}, {"MoM", "auto"})
    assert reason is not None
    assert why in reason


@pytest.mark.parametrize(
    ("ranks", "limit"), [([1], 1), ([2], 8), ([8, 4], 8), ([9], 16), ([16, 257], 320), ([321], 512), ([], 16)]
)
def test_the_rank_limit_is_the_smallest_that_vllm_allows(ranks: list[int], limit: int) -> None:
    assert rank_limit(ranks) == limit


def test_a_rank_above_all_that_vllm_allows_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 513 is above 512"):
        rank_limit([8, 513])
