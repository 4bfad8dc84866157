"""The LoRA flags that are derived from adapters and memory, with their explanations."""

from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.validation import Adapter
from vllm_lora_router.server.vllm.lora_flags import (
    MAX_SLOTS,
    AvailableMemory,
    DerivedFlags,
    FlagError,
    UserFlags,
    derive_flags,
)

MB = 10**6
GB = 10**9

# A slot for rank 16 uses 80 MB, and an adapter of `adapters()` uses 40 MB of the engine's memory.
AMPLE = AvailableMemory(device_bytes=80 * GB, host_bytes=100 * GB, slot_bytes_per_rank=5 * MB)


def adapters(*ranks: int, elements: int = 20 * MB) -> list[Adapter]:
    return [
        Adapter(f"lora-{i}", Path(f"/{i}"), rank, 4 * elements, elements, ("q_proj",), ())
        for i, rank in enumerate(ranks)
    ]


def value(derived: DerivedFlags, flag: str) -> int:
    return int(derived.flags[derived.flags.index(flag) + 1])


def reason(derived: DerivedFlags, flag: str) -> str:
    line = next(line for line in derived.explanations if line.startswith(flag))
    return line.partition(": ")[2]


def test_every_adapter_gets_a_slot_that_fits_its_rank() -> None:
    assert derive_flags(adapters(8, 24, 4), UserFlags(), AvailableMemory()).flags == (
        *("--enable-lora", "--max-loras", "3", "--max-cpu-loras", "3", "--max-lora-rank", "32"),
    )


def test_many_adapters_share_slots_and_all_stay_in_host_memory() -> None:
    derived = derive_flags(adapters(*[8] * 40), UserFlags(), AMPLE)
    assert value(derived, "--max-loras") == MAX_SLOTS
    assert value(derived, "--max-cpu-loras") == 40


def test_slots_use_at_most_5_percent_of_device_but_there_is_at_least_one() -> None:
    small = AvailableMemory(device_bytes=8 * GB, slot_bytes_per_rank=5 * MB)
    assert value(derive_flags(adapters(*[16] * 10), UserFlags(), small), "--max-loras") == 5
    assert value(derive_flags(adapters(*[32] * 10), UserFlags(), small), "--max-loras") == 2
    assert value(derive_flags(adapters(256, 256), UserFlags(), small), "--max-loras") == 1


def test_slot_size_follows_user_max_lora_rank() -> None:
    small = AvailableMemory(device_bytes=8 * GB, slot_bytes_per_rank=5 * MB)
    assert value(derive_flags(adapters(*[8] * 10), UserFlags(max_lora_rank=64), small), "--max-loras") == 1


def test_adapters_use_at_most_25_percent_of_free_host_memory_but_at_least_one_per_slot() -> None:
    narrow = AvailableMemory(host_bytes=GB)
    assert value(derive_flags(adapters(*[8] * 40), UserFlags(max_loras=2), narrow), "--max-cpu-loras") == 6
    assert value(derive_flags(adapters(*[8] * 40), UserFlags(max_loras=9), narrow), "--max-cpu-loras") == 9


def test_largest_adapters_must_fit_together_in_host_memory() -> None:
    mixed = [*adapters(*[8] * 10, elements=MB), *adapters(*[8] * 2, elements=100 * MB)]
    assert value(derive_flags(mixed, UserFlags(max_loras=1), AvailableMemory(host_bytes=GB)), "--max-cpu-loras") == 1


def test_each_worker_has_a_copy_of_every_adapter() -> None:
    shared = AvailableMemory(host_bytes=GB, workers=2)
    assert value(derive_flags(adapters(*[8] * 40), UserFlags(max_loras=2), shared), "--max-cpu-loras") == 3


def test_wider_dtype_uses_more_host_memory() -> None:
    wide = AvailableMemory(host_bytes=GB, element_bytes=4)
    assert value(derive_flags(adapters(*[8] * 40), UserFlags(max_loras=2), wide), "--max-cpu-loras") == 3


def test_user_flags_are_not_changed() -> None:
    set_by_user = UserFlags(enable_lora=True, max_loras=1, max_lora_rank=64)
    assert derive_flags(adapters(8, 8), set_by_user, AMPLE).flags == ("--max-cpu-loras", "2")
    assert derive_flags(adapters(8), UserFlags(True, 4, 4, 8), AMPLE) == DerivedFlags()
    assert (
        value(derive_flags(adapters(8), UserFlags(max_loras=4), AMPLE), "--max-cpu-loras") == 4
    )  # at least one per slot


def test_slots_do_not_exceed_user_max_cpu_loras() -> None:
    derived = derive_flags(adapters(8, 8, 8), UserFlags(max_cpu_loras=2), AMPLE)
    assert value(derived, "--max-loras") == 2
    assert "--max-cpu-loras" not in derived.flags
    assert "--max-cpu-loras allows no more" in reason(derived, "--max-loras")


def test_no_flags_without_adapters() -> None:
    assert derive_flags([], UserFlags(), AMPLE) == DerivedFlags()


def test_empty_sources_enable_lora_with_four_slots_and_default_rank() -> None:
    assert derive_flags([], UserFlags(), AMPLE, expected=0).flags == (
        *("--enable-lora", "--max-loras", "4", "--max-cpu-loras", "4", "--max-lora-rank", "16"),
    )
    assert value(derive_flags([], UserFlags(), AvailableMemory(2 * GB, GB, 5 * MB), expected=0), "--max-loras") == 1
    assert value(derive_flags(adapters(8), UserFlags(), AMPLE, expected=0), "--max-lora-rank") == 16
    assert value(derive_flags(adapters(64), UserFlags(), AMPLE, expected=0), "--max-lora-rank") == 64


def test_adapters_in_sources_count_like_declared_ones() -> None:
    derived = derive_flags(adapters(8, 8), UserFlags(), AMPLE, expected=5)
    assert value(derived, "--max-loras") == 7


def test_with_sources_only_host_memory_limits_max_cpu_loras() -> None:
    # 40 MB each: a quarter of 100 GB
    assert value(derive_flags(adapters(8, 8), UserFlags(), AMPLE, expected=5), "--max-cpu-loras") == 625
    assert value(derive_flags(adapters(8, 8), UserFlags(), AMPLE), "--max-cpu-loras") == 2


def test_adapter_in_source_counts_as_large_as_largest_declared_or_as_a_slot() -> None:
    narrow = AvailableMemory(host_bytes=GB, slot_bytes_per_rank=5 * MB)
    assert value(derive_flags(adapters(8), UserFlags(max_loras=1), narrow, expected=20), "--max-cpu-loras") == 6
    assert value(derive_flags([], UserFlags(max_loras=1), narrow, expected=20), "--max-cpu-loras") == 3


def test_every_flag_is_explained_with_its_memory() -> None:
    derived = derive_flags(adapters(*[16] * 12), UserFlags(), AMPLE)
    assert derived.explanations == (
        "--enable-lora: 12 adapters",
        "--max-loras 12: 12 adapters, one slot each (device memory: up to 80.0 MB each, 960.0 MB in total)",
        "--max-cpu-loras 12: 12 adapters (480.0 MB), within 25 % of the 100.0 GB of free host memory",
        "--max-lora-rank 16: the largest rank is 16, of 'lora-0'; a slot of this rank uses up to 80.0 MB",
    )


def test_rounded_rank_is_explained() -> None:
    rank = reason(derive_flags(adapters(8, 24), UserFlags(), AvailableMemory()), "--max-lora-rank 32")
    assert rank == "the largest rank is 24, of 'lora-1', rounded up to the next rank that vLLM accepts"


def test_fewer_slots_than_adapters_are_explained() -> None:
    many = adapters(*[16] * 40)
    limited = reason(derive_flags(many, UserFlags(), AMPLE), "--max-loras")
    assert limited.startswith("40 adapters, one slot each up to 16 ")
    assert limited.endswith("; requests whose adapter has no slot wait for one")
    limited_by_memory = reason(derive_flags(many, UserFlags(), AvailableMemory(8 * GB, None, 5 * MB)), "--max-loras")
    assert "as many slots as fit into 5 % of the device's 8.0 GB" in limited_by_memory
    assert limited_by_memory.endswith("; requests whose adapter has no slot wait for one")
    assert "wait" not in reason(derive_flags(many[:3], UserFlags(), AMPLE), "--max-loras")


def test_explanation_mentions_adapters_that_do_not_fit_into_memory() -> None:
    explanation = reason(
        derive_flags(adapters(*[8] * 40), UserFlags(max_loras=8), AvailableMemory(host_bytes=GB)), "--max-cpu-loras"
    )
    assert explanation == (
        "one per slot; 40 adapters (1.6 GB), 6 of them fit into 25 % of the 1.0 GB of free host memory; "
        "the others are read again when requested"
    )


def test_explanations_mention_adapters_in_sources() -> None:
    derived = derive_flags([], UserFlags(), AMPLE, expected=0)
    assert reason(derived, "--enable-lora") == "no adapter yet; more can be added"
    assert reason(derived, "--max-loras").startswith("no adapter yet; at least 4, for adapters added later")
    with_declared = derive_flags(adapters(8), UserFlags(), AMPLE, expected=5)
    assert reason(with_declared, "--max-loras").startswith("1 adapter and 5 in sources, one slot each")


def test_conflicting_user_flags_are_reported_with_remedy() -> None:
    with pytest.raises(FlagError) as raised:
        derive_flags(adapters(8, 24), UserFlags(enable_lora=False, max_lora_rank=16), AMPLE)
    lines = str(raised.value).splitlines()
    assert len(lines) == 2
    assert "--no-enable-lora" in lines[0]
    assert "'lora-1'" in lines[1] and "rank 24" in lines[1] and "set it to 32" in lines[1]


def test_no_enable_lora_conflicts_with_sources() -> None:
    with pytest.raises(FlagError, match=r"--no-enable-lora is set, but router\.adapters\.sources can add adapters"):
        derive_flags([], UserFlags(enable_lora=False), AMPLE, expected=0)
