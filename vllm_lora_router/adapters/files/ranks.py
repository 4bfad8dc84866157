"""The ranks that vLLM can be configured to."""

from collections.abc import Iterable

# `--max-lora-rank` takes these values only (vllm/config/lora.py, MaxLoRARanks).
ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# What vLLM takes when nobody says anything: right for a server whose adapters are yet to come.
DEFAULT_RANK = 16


def rank_limit(ranks: Iterable[int]) -> int:
    """The smallest `--max-lora-rank` that serves adapters of all these ranks; vLLM's default of 16 for none.

    Raises ValueError for a rank above the largest that vLLM allows.
    """
    largest = max(ranks, default=DEFAULT_RANK)
    for allowed in ALLOWED_RANKS:
        if allowed >= largest:
            return allowed
    raise ValueError(f"rank {largest} is above {ALLOWED_RANKS[-1]}, the largest that vLLM serves")
