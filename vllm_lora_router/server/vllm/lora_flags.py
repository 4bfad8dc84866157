"""The LoRA flags of `vllm serve` that fit a set of adapters, and the memory that there is for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.filesize import decimal

from vllm_lora_router.adapters.files.memory import ELEMENT_BYTES, adapter_bytes
from vllm_lora_router.adapters.files.ranks import DEFAULT_RANK, rank_limit
from vllm_lora_router.adapters.files.validation import Adapter

# A slot costs memory on the device whether or not an adapter is in it.
MOST_SLOTS = 16
SLOTS_PERCENT = 5  # of the device's memory

# No slot can be added for an adapter that comes while the server runs.
RUN_TIME_SLOTS = 4

MOST_KEPT = 10_000  # of adapters that may come, whatever memory there is

HOST_PERCENT = 25  # of the host memory that is free: pinned, the same adapters may take up to twice as much


@dataclass(frozen=True)
class Given:
    """What the user said; None where a flag was not given."""

    enable_lora: bool | None = None
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    max_lora_rank: int | None = None


@dataclass(frozen=True)
class Room:
    """The memory that adapters have, in bytes; None where it is not known."""

    device_bytes: int | None = None  # of one device that the engine runs on, in all; on a CPU the host's
    host_bytes: int | None = None  # what is free of the host's
    slot_bytes_per_rank: int | None = None  # what `memory.slot_bytes` says of rank 1
    element_bytes: int = ELEMENT_BYTES  # of the dtype that vLLM keeps adapters in
    workers: int = 1  # the engine's worker processes on this host: each keeps every adapter in host memory


@dataclass(frozen=True)
class Derived:
    """Flags to add to the user's, and why each has its value."""

    flags: tuple[str, ...] = ()
    explained: tuple[str, ...] = ()  # a line a flag: "--max-loras 3: 3 adapters, one slot each ..."


class FlagError(ValueError):
    """A flag of the user's that the adapters do not fit."""


def derive(adapters: Sequence[Adapter], given: Given, room: Room, expected: int | None = None) -> Derived:
    """The flags to add so that vLLM has a slot for each adapter and room for its rank, as far as memory allows.

    Args:
        adapters: those that are known and checked.
        given: what the user set, which stays as it is.
        expected: how many more are to come while the server runs; 0 where they may come and none is known of, None
            where none can come.

    Raises:
        FlagError: with every flag that stands against an adapter, one a line.
    """
    if not adapters and expected is None:
        return Derived()
    if problems := list(_conflicts(adapters, given)):
        raise FlagError("\n".join(problems))
    count = _Count(len(adapters), expected)
    rank, rank_reason = _rank(adapters, count)
    rank = rank if given.max_lora_rank is None else given.max_lora_rank
    slot = None if room.slot_bytes_per_rank is None else room.slot_bytes_per_rank * rank
    slots, slots_reason = _slots(count, given, room, slot)
    slots = slots if given.max_loras is None else given.max_loras
    kept, kept_reason = _kept(adapters, count, room, slot, slots)
    chosen: list[tuple[tuple[str, ...], str]] = []
    if not given.enable_lora:
        chosen.append((("--enable-lora",), f"{count}, more may come" if count.may_grow else str(count)))
    if given.max_loras is None:
        chosen.append((("--max-loras", str(slots)), slots_reason))
    if given.max_cpu_loras is None:
        chosen.append((("--max-cpu-loras", str(kept)), kept_reason))
    if given.max_lora_rank is None:
        cost = f"; a slot of it takes up to {decimal(slot)}" if slot else ""
        chosen.append((("--max-lora-rank", str(rank)), rank_reason + cost))
    return Derived(
        flags=tuple(word for words, _ in chosen for word in words),
        explained=tuple(f"{' '.join(words)}: {reason}" for words, reason in chosen),
    )


@dataclass(frozen=True)
class _Count:
    known: int
    expected: int | None

    @property
    def total(self) -> int:
        return self.known + (self.expected or 0)

    @property
    def may_grow(self) -> bool:
        return self.expected is not None

    def __str__(self) -> str:
        if not self.total:
            return "no adapter yet"
        first = self.known or self.total
        adapters = "1 adapter" if first == 1 else f"{first} adapters"
        if not self.expected:
            return adapters
        return f"{adapters} and {self.expected} yet to come" if self.known else f"{adapters} yet to come"


def _rank(adapters: Sequence[Adapter], count: _Count) -> tuple[int, str]:
    largest = max(adapters, key=lambda adapter: adapter.rank, default=None)
    if largest is None or (count.may_grow and largest.rank < DEFAULT_RANK):
        return rank_limit([DEFAULT_RANK]), "vLLM's default, for the adapters that may come"
    limit = rank_limit([largest.rank])
    rounded = "" if limit == largest.rank else ", and this is the next that vLLM allows"
    return limit, f"the largest rank is {largest.rank}, of {largest.name!r}{rounded}"


def _slots(count: _Count, given: Given, room: Room, slot: int | None) -> tuple[int, str]:
    if count.total > MOST_SLOTS:
        limits = [(MOST_SLOTS, f"{count}, one slot each up to {MOST_SLOTS}")]
    elif count.may_grow and count.total < RUN_TIME_SLOTS:
        limits = [(RUN_TIME_SLOTS, f"{count}; {RUN_TIME_SLOTS} at least, for those that may come")]
    else:
        limits = [(count.total, f"{count}, one slot each")]
    if slot and room.device_bytes is not None:
        share = f"{SLOTS_PERCENT} % of the device's {decimal(room.device_bytes)}"
        fitting = room.device_bytes * SLOTS_PERCENT // 100 // slot
        why = f"as many slots as fit into {share}" if fitting else f"one slot alone takes more than {share}"
        limits.append((max(1, fitting), f"{count}, {why}"))
    if given.max_cpu_loras is not None:
        limits.append((max(1, given.max_cpu_loras), f"{count}, --max-cpu-loras allows no more slots"))
    slots, reason = min(limits, key=lambda limit: limit[0])
    if slot:
        in_all = f" each, {decimal(slots * slot)} in all" if slots > 1 else ""
        reason += f" (device memory: up to {decimal(slot)}{in_all})"
    if slots < count.total:
        reason += "; requests whose adapter has no slot wait for one"
    return slots, reason


def _kept(adapters: Sequence[Adapter], count: _Count, room: Room, slot: int | None, slots: int) -> tuple[int, str]:
    if not count.total:
        return slots, "one for each slot"
    known = [adapter_bytes(adapter, room.element_bytes) for adapter in adapters]
    unseen = max(known, default=slot or 0)
    sizes = [size * room.workers for size in (*known, *[unseen] * (count.expected or 0))]
    copies = f", a copy for each of {room.workers} workers" if room.workers > 1 else ""
    everything = f"{count} ({decimal(sum(sizes))}{copies})" if any(sizes) else str(count)
    if room.host_bytes is None:
        fitting, reason = count.total, f"{everything}, all in host memory"
    else:
        share = f"{HOST_PERCENT} % of the {decimal(room.host_bytes)} of free host memory"
        budget = room.host_bytes * HOST_PERCENT // 100
        # Requests decide which of them are kept: the largest ones together must fit.
        fitting = sum(taken <= budget for taken in accumulate(sorted(sizes, reverse=True)))
        if count.may_grow and fitting == count.total and (largest := max(sizes)):
            # It is a bound, which costs nothing until it is used.
            fitting = max(fitting, min(budget // largest, MOST_KEPT))
        reason = f"{everything}, within {share}"
        if fitting < count.total:
            reason = f"{everything}, of which {fitting} fit into {share}; the others are read again when asked for"
    if slots > fitting:
        return slots, f"one for each slot; {reason}"
    return fitting, reason


def _conflicts(adapters: Sequence[Adapter], given: Given) -> Iterator[str]:
    if given.enable_lora is False:
        why = "the configuration declares adapters" if adapters else "adapters may come while the server runs"
        yield f"--no-enable-lora is set, but {why}; leave the flag out"
    for adapter in adapters:
        if given.max_lora_rank is not None and adapter.rank > given.max_lora_rank:
            needed = rank_limit([adapter.rank])
            yield (
                f"adapter {adapter.name!r} in {adapter.folder} has rank {adapter.rank}, --max-lora-rank is "
                f"{given.max_lora_rank}; set it to {needed} or leave it out"
            )
