"""Limits that vLLM sets for the ranks of adapters."""

from collections.abc import Iterable

# `--max-lora-rank` accepts only these values (vllm/config/lora.py, MaxLoRARanks).
ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# vLLM's default for `--max-lora-rank`. It suits a server whose adapters arrive at run time.
DEFAULT_RANK = 16


def rank_limit(ranks: Iterable[int]) -> int:
    """Return the smallest `--max-lora-rank` that serves adapters of all these ranks; vLLM's default of 16 for none.

    Raises:
        ValueError: a rank is above the largest that vLLM serves.
    """
    largest = max(ranks, default=DEFAULT_RANK)
    for allowed in ALLOWED_RANKS:
        if allowed >= largest:
            return allowed
    raise ValueError(f"rank {largest} is above {ALLOWED_RANKS[-1]}, the largest that vLLM serves")
