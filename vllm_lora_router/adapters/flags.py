"""The LoRA flags of `vllm serve` that fit a set of adapters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_lora_router.adapters.checks import Adapter
from vllm_lora_router.adapters.ranks import rank_limit

# A slot costs memory on the GPU whether or not an adapter is in it.
MOST_SLOTS = 16


@dataclass(frozen=True)
class Given:
    """What the user said; None where a flag was not given."""

    enable_lora: bool | None = None
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    max_lora_rank: int | None = None


class FlagError(ValueError):
    """A flag of the user's that the adapters do not fit."""


def derive(adapters: Sequence[Adapter], given: Given) -> list[str]:
    """The flags to add so that vLLM has a slot for each adapter and room for its rank.

    Raises:
        FlagError: with every flag that stands against an adapter, one a line.
    """
    if not adapters:
        return []
    if problems := list(_conflicts(adapters, given)):
        raise FlagError("\n".join(problems))
    slots = given.max_loras or min(len(adapters), MOST_SLOTS)
    flags: list[str] = []
    if not given.enable_lora:
        flags.append("--enable-lora")
    if given.max_loras is None:
        flags += ["--max-loras", str(slots)]
    if given.max_cpu_loras is None:
        # None is ever dropped from CPU memory, to be read from disk again in the middle of a step.
        flags += ["--max-cpu-loras", str(max(len(adapters), slots))]
    if given.max_lora_rank is None:
        flags += ["--max-lora-rank", str(rank_limit(adapter.rank for adapter in adapters))]
    return flags


def _conflicts(adapters: Sequence[Adapter], given: Given) -> Iterator[str]:
    if given.enable_lora is False:
        yield "--no-enable-lora is set, but the configuration declares adapters; leave the flag out"
    for adapter in adapters:
        if given.max_lora_rank is not None and adapter.rank > given.max_lora_rank:
            needed = rank_limit([adapter.rank])
            yield (
                f"adapter {adapter.name!r} in {adapter.folder} has rank {adapter.rank}, --max-lora-rank is "
                f"{given.max_lora_rank}; set it to {needed} or leave it out"
            )
