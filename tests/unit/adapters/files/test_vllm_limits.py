"""The `--max-lora-rank` that serves all adapters."""

import pytest

from vllm_lora_router.adapters.files.vllm_limits import rank_limit


@pytest.mark.parametrize(
    ("ranks", "limit"), [([1], 1), ([2], 8), ([8, 4], 8), ([9], 16), ([16, 257], 320), ([321], 512), ([], 16)]
)
def test_rank_limit_is_the_smallest_that_vllm_allows(ranks: list[int], limit: int) -> None:
    assert rank_limit(ranks) == limit


def test_rank_above_the_largest_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 513 is above 512"):
        rank_limit([8, 513])
