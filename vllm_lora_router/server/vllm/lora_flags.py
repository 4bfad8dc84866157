"""Derivation of the LoRA flags of `vllm serve` from a set of adapters and the available memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.filesize import decimal

from vllm_lora_router.adapters.files.memory import ELEMENT_BYTES, adapter_bytes
from vllm_lora_router.adapters.files.validation import Adapter
from vllm_lora_router.adapters.files.vllm_limits import DEFAULT_RANK, rank_limit

# A slot uses device memory even when it is empty.
MAX_SLOTS = 16
SLOTS_PERCENT = 5  # of the device's memory

# Slots cannot be added while the server runs, so sources get spare ones.
MIN_SLOTS_WITH_SOURCES = 4

MAX_LOADED_ADAPTERS = 10_000  # with sources, regardless of the available memory

HOST_PERCENT = 25  # of the free host memory; pinned adapters can use up to twice their size


@dataclass(frozen=True)
class UserFlags:
    """The LoRA flags that the user has set; None: not set."""

    enable_lora: bool | None = None
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    max_lora_rank: int | None = None


@dataclass(frozen=True)
class AvailableMemory:
    """The memory that is available for adapters, in bytes; None: unknown."""

    device_bytes: int | None = None  # total memory of one of the engine's devices; on a CPU the host's
    host_bytes: int | None = None  # free host memory
    slot_bytes_per_rank: int | None = None  # `memory.slot_bytes` for rank 1
    element_bytes: int = ELEMENT_BYTES  # of the dtype in which vLLM stores adapters
    workers: int = 1  # the engine's worker processes on this host; each one stores every adapter in host memory


@dataclass(frozen=True)
class DerivedFlags:
    """Flags to add to the user's, with an explanation of each."""

    flags: tuple[str, ...] = ()
    explanations: tuple[str, ...] = ()  # one line per flag: "--max-loras 3: 3 adapters, one slot each ..."


class FlagError(ValueError):
    """A flag of the user that does not fit the adapters."""


def derive_flags(
    adapters: Sequence[Adapter], user_flags: UserFlags, memory: AvailableMemory, expected: int | None = None
) -> DerivedFlags:
    """Return flags that give each adapter a slot and fit its rank, as far as memory allows.

    Args:
        adapters: the adapters that are declared and valid.
        user_flags: the flags that the user has set. They do not change.
        memory: the memory that is available for adapters.
        expected: the number of adapters that the configured sources contain now; None: no sources are configured, so
            no adapter can be added while the server runs.

    Raises:
        FlagError: a user flag conflicts with an adapter. The message has one line per conflict.
    """
    if not adapters and expected is None:
        return DerivedFlags()
    if conflicts := list(_conflicts(adapters, user_flags)):
        raise FlagError("\n".join(conflicts))
    count = _AdapterCount(len(adapters), expected)
    rank, rank_reason = _max_rank(adapters, count)
    rank = rank if user_flags.max_lora_rank is None else user_flags.max_lora_rank
    slot = None if memory.slot_bytes_per_rank is None else memory.slot_bytes_per_rank * rank
    slots, slots_reason = _slots(count, user_flags, memory, slot)
    slots = slots if user_flags.max_loras is None else user_flags.max_loras
    loaded, loaded_reason = _loaded_adapters(adapters, count, memory, slot, slots)
    derived: list[tuple[tuple[str, ...], str]] = []
    if not user_flags.enable_lora:
        derived.append((("--enable-lora",), f"{count}; more can be added" if count.can_grow else str(count)))
    if user_flags.max_loras is None:
        derived.append((("--max-loras", str(slots)), slots_reason))
    if user_flags.max_cpu_loras is None:
        derived.append((("--max-cpu-loras", str(loaded)), loaded_reason))
    if user_flags.max_lora_rank is None:
        cost = f"; a slot of this rank uses up to {decimal(slot)}" if slot else ""
        derived.append((("--max-lora-rank", str(rank)), rank_reason + cost))
    return DerivedFlags(
        flags=tuple(argument for arguments, _ in derived for argument in arguments),
        explanations=tuple(f"{' '.join(arguments)}: {reason}" for arguments, reason in derived),
    )


@dataclass(frozen=True)
class _AdapterCount:
    declared: int
    expected: int | None

    @property
    def total(self) -> int:
        return self.declared + (self.expected or 0)

    @property
    def can_grow(self) -> bool:
        return self.expected is not None

    def __str__(self) -> str:
        if not self.total:
            return "no adapter yet"
        if not self.expected:
            return _adapters(self.declared)
        if not self.declared:
            return f"{_adapters(self.expected)} in sources"
        return f"{_adapters(self.declared)} and {self.expected} in sources"


def _adapters(number: int) -> str:
    return "1 adapter" if number == 1 else f"{number} adapters"


def _max_rank(adapters: Sequence[Adapter], count: _AdapterCount) -> tuple[int, str]:
    largest = max(adapters, key=lambda adapter: adapter.rank, default=None)
    if largest is None or (count.can_grow and largest.rank < DEFAULT_RANK):
        return rank_limit([DEFAULT_RANK]), "vLLM's default, for adapters that are added later"
    limit = rank_limit([largest.rank])
    rounded = "" if limit == largest.rank else ", rounded up to the next rank that vLLM accepts"
    return limit, f"the largest rank is {largest.rank}, of {largest.name!r}{rounded}"


def _slots(count: _AdapterCount, user_flags: UserFlags, memory: AvailableMemory, slot: int | None) -> tuple[int, str]:
    if count.total > MAX_SLOTS:
        limits = [(MAX_SLOTS, f"{count}, one slot each up to {MAX_SLOTS}")]
    elif count.can_grow and count.total < MIN_SLOTS_WITH_SOURCES:
        limits = [(MIN_SLOTS_WITH_SOURCES, f"{count}; at least {MIN_SLOTS_WITH_SOURCES}, for adapters added later")]
    else:
        limits = [(count.total, f"{count}, one slot each")]
    if slot and memory.device_bytes is not None:
        share = f"{SLOTS_PERCENT} % of the device's {decimal(memory.device_bytes)}"
        fitting = memory.device_bytes * SLOTS_PERCENT // 100 // slot
        reason = f"as many slots as fit into {share}" if fitting else f"one slot already uses more than {share}"
        limits.append((max(1, fitting), f"{count}, {reason}"))
    if user_flags.max_cpu_loras is not None:
        limits.append((max(1, user_flags.max_cpu_loras), f"{count}, --max-cpu-loras allows no more slots"))
    slots, reason = min(limits, key=lambda limit: limit[0])
    if slot:
        total = f" each, {decimal(slots * slot)} in total" if slots > 1 else ""
        reason += f" (device memory: up to {decimal(slot)}{total})"
    if slots < count.total:
        reason += "; requests whose adapter has no slot wait for one"
    return slots, reason


def _loaded_adapters(
    adapters: Sequence[Adapter], count: _AdapterCount, memory: AvailableMemory, slot: int | None, slots: int
) -> tuple[int, str]:
    """Return the number of adapters to keep in host memory, and the reason."""
    if not count.total:
        return slots, "one per slot"
    declared_sizes = [adapter_bytes(adapter, memory.element_bytes) for adapter in adapters]
    expected_size = max(declared_sizes, default=slot or 0)  # of an adapter in the sources, which is not read yet
    sizes = [size * memory.workers for size in (*declared_sizes, *[expected_size] * (count.expected or 0))]
    copies = f", a copy for each of {memory.workers} workers" if memory.workers > 1 else ""
    all_adapters = f"{count} ({decimal(sum(sizes))}{copies})" if any(sizes) else str(count)
    if memory.host_bytes is None:
        fitting, reason = count.total, f"{all_adapters}, all in host memory"
    else:
        share = f"{HOST_PERCENT} % of the {decimal(memory.host_bytes)} of free host memory"
        budget = memory.host_bytes * HOST_PERCENT // 100
        # Requests determine which adapters are loaded, so the largest ones must fit together.
        fitting = sum(total <= budget for total in accumulate(sorted(sizes, reverse=True)))
        if count.can_grow and fitting == count.total and (largest := max(sizes)):
            # A higher limit costs nothing until adapters use it.
            fitting = max(fitting, min(budget // largest, MAX_LOADED_ADAPTERS))
        reason = f"{all_adapters}, within {share}"
        if fitting < count.total:
            reason = f"{all_adapters}, {fitting} of them fit into {share}; the others are read again when requested"
    if slots > fitting:
        return slots, f"one per slot; {reason}"
    return fitting, reason


def _conflicts(adapters: Sequence[Adapter], user_flags: UserFlags) -> Iterator[str]:
    if user_flags.enable_lora is False:
        cause = "the configuration declares adapters" if adapters else "router.adapters.sources can add adapters"
        yield f"--no-enable-lora is set, but {cause}; remove the flag"
    for adapter in adapters:
        if user_flags.max_lora_rank is not None and adapter.rank > user_flags.max_lora_rank:
            needed = rank_limit([adapter.rank])
            yield (
                f"adapter {adapter.name!r} in {adapter.folder} has rank {adapter.rank}, and --max-lora-rank is "
                f"{user_flags.max_lora_rank}; set it to {needed} or remove it"
            )
