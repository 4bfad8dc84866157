"""The LoRA flags that vLLM gets, and why."""

from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.validation import Adapter
from vllm_lora_router.server.vllm.lora_flags import MOST_SLOTS, Derived, FlagError, Given, Room, derive

MB = 10**6
GB = 10**9

# A slot for rank 16 takes 80 MB, an adapter of ours 40 MB in the engine's memory.
ROOMY = Room(device_bytes=80 * GB, host_bytes=100 * GB, slot_bytes_per_rank=5 * MB)


def adapters(*ranks: int, elements: int = 20 * MB) -> list[Adapter]:
    return [
        Adapter(f"lora-{i}", Path(f"/{i}"), rank, 4 * elements, elements, ("q_proj",), ())
        for i, rank in enumerate(ranks)
    ]


def value(derived: Derived, flag: str) -> int:
    return int(derived.flags[derived.flags.index(flag) + 1])


def reason(derived: Derived, flag: str) -> str:
    line = next(line for line in derived.explained if line.startswith(flag))
    return line.partition(": ")[2]


def test_every_adapter_gets_a_slot_and_room_for_its_rank() -> None:
    assert derive(adapters(8, 24, 4), Given(), Room()).flags == (
        *("--enable-lora", "--max-loras", "3", "--max-cpu-loras", "3", "--max-lora-rank", "32"),
    )


def test_many_adapters_share_the_slots_and_all_stay_in_memory() -> None:
    derived = derive(adapters(*[8] * 40), Given(), ROOMY)
    assert value(derived, "--max-loras") == MOST_SLOTS
    assert value(derived, "--max-cpu-loras") == 40


def test_slots_take_at_most_a_twentieth_of_the_device_and_there_is_always_one() -> None:
    small = Room(device_bytes=8 * GB, slot_bytes_per_rank=5 * MB)
    assert value(derive(adapters(*[16] * 10), Given(), small), "--max-loras") == 5
    assert value(derive(adapters(*[32] * 10), Given(), small), "--max-loras") == 2
    assert value(derive(adapters(256, 256), Given(), small), "--max-loras") == 1


def test_slots_are_as_large_as_the_rank_that_the_user_set() -> None:
    small = Room(device_bytes=8 * GB, slot_bytes_per_rank=5 * MB)
    assert value(derive(adapters(*[8] * 10), Given(max_lora_rank=64), small), "--max-loras") == 1


def test_adapters_take_at_most_a_quarter_of_the_free_host_memory_but_every_slot_has_one() -> None:
    narrow = Room(host_bytes=GB)
    assert value(derive(adapters(*[8] * 40), Given(max_loras=2), narrow), "--max-cpu-loras") == 6
    assert value(derive(adapters(*[8] * 40), Given(max_loras=9), narrow), "--max-cpu-loras") == 9


def test_the_largest_adapters_must_fit_together_whatever_order_they_are_declared_in() -> None:
    mixed = [*adapters(*[8] * 10, elements=MB), *adapters(*[8] * 2, elements=100 * MB)]
    assert value(derive(mixed, Given(max_loras=1), Room(host_bytes=GB)), "--max-cpu-loras") == 1


def test_each_worker_keeps_its_own_copy_of_every_adapter() -> None:
    shared = Room(host_bytes=GB, workers=2)
    assert value(derive(adapters(*[8] * 40), Given(max_loras=2), shared), "--max-cpu-loras") == 3


def test_a_wider_dtype_takes_more_host_memory() -> None:
    wide = Room(host_bytes=GB, element_bytes=4)
    assert value(derive(adapters(*[8] * 40), Given(max_loras=2), wide), "--max-cpu-loras") == 3


def test_what_the_user_set_stays() -> None:
    set_by_user = Given(enable_lora=True, max_loras=1, max_lora_rank=64)
    assert derive(adapters(8, 8), set_by_user, ROOMY).flags == ("--max-cpu-loras", "2")
    assert derive(adapters(8), Given(True, 4, 4, 8), ROOMY) == Derived()
    assert value(derive(adapters(8), Given(max_loras=4), ROOMY), "--max-cpu-loras") == 4  # never below the slots


def test_there_are_no_more_slots_than_the_users_max_cpu_loras_allows() -> None:
    derived = derive(adapters(8, 8, 8), Given(max_cpu_loras=2), ROOMY)
    assert value(derived, "--max-loras") == 2
    assert "--max-cpu-loras" not in derived.flags
    assert "--max-cpu-loras allows no more" in reason(derived, "--max-loras")


def test_without_adapters_nothing_is_added() -> None:
    assert derive([], Given(), ROOMY) == Derived()


def test_adapters_that_may_come_find_lora_enabled_four_slots_and_vllms_default_rank() -> None:
    assert derive([], Given(), ROOMY, expected=0).flags == (
        *("--enable-lora", "--max-loras", "4", "--max-cpu-loras", "4", "--max-lora-rank", "16"),
    )
    assert value(derive([], Given(), Room(2 * GB, GB, 5 * MB), expected=0), "--max-loras") == 1
    assert value(derive(adapters(8), Given(), ROOMY, expected=0), "--max-lora-rank") == 16
    assert value(derive(adapters(64), Given(), ROOMY, expected=0), "--max-lora-rank") == 64


def test_adapters_that_are_known_to_come_count_like_those_that_are_there() -> None:
    derived = derive(adapters(8, 8), Given(), ROOMY, expected=5)
    assert value(derived, "--max-loras") == 7


def test_where_adapters_may_come_host_memory_alone_bounds_how_many_are_kept() -> None:
    # 40 MB each: a quarter of 100 GB
    assert value(derive(adapters(8, 8), Given(), ROOMY, expected=5), "--max-cpu-loras") == 625
    assert value(derive(adapters(8, 8), Given(), ROOMY), "--max-cpu-loras") == 2


def test_an_adapter_yet_to_come_is_taken_to_be_as_large_as_the_largest_known_or_as_a_slot() -> None:
    narrow = Room(host_bytes=GB, slot_bytes_per_rank=5 * MB)
    assert value(derive(adapters(8), Given(max_loras=1), narrow, expected=20), "--max-cpu-loras") == 6
    assert value(derive([], Given(max_loras=1), narrow, expected=20), "--max-cpu-loras") == 3


def test_every_flag_is_explained_with_what_it_costs() -> None:
    derived = derive(adapters(*[16] * 12), Given(), ROOMY)
    assert derived.explained == (
        "--enable-lora: 12 adapters",
        "--max-loras 12: 12 adapters, one slot each (device memory: up to 80.0 MB each, 960.0 MB in all)",
        "--max-cpu-loras 12: 12 adapters (480.0 MB), within 25 % of the 100.0 GB of free host memory",
        "--max-lora-rank 16: the largest rank is 16, of 'lora-0'; a slot of it takes up to 80.0 MB",
    )


def test_a_rank_that_vllm_does_not_have_is_explained() -> None:
    rank = reason(derive(adapters(8, 24), Given(), Room()), "--max-lora-rank 32")
    assert rank == "the largest rank is 24, of 'lora-1', and this is the next that vLLM allows"


def test_fewer_slots_than_adapters_are_explained_with_the_limit_and_that_requests_wait() -> None:
    many = adapters(*[16] * 40)
    most = reason(derive(many, Given(), ROOMY), "--max-loras")
    assert most.startswith("40 adapters, one slot each up to 16 ")
    assert most.endswith("; requests whose adapter has no slot wait for one")
    small = reason(derive(many, Given(), Room(8 * GB, None, 5 * MB)), "--max-loras")
    assert "as many slots as fit into 5 % of the device's 8.0 GB" in small
    assert small.endswith("; requests whose adapter has no slot wait for one")
    assert "wait" not in reason(derive(many[:3], Given(), ROOMY), "--max-loras")


def test_adapters_that_memory_does_not_hold_are_said_to_be_read_again() -> None:
    kept = reason(derive(adapters(*[8] * 40), Given(max_loras=8), Room(host_bytes=GB)), "--max-cpu-loras")
    assert kept == (
        "one for each slot; 40 adapters (1.6 GB), of which 6 fit into 25 % of the 1.0 GB of free host memory; "
        "the others are read again when asked for"
    )


def test_flags_for_adapters_that_may_come_say_so() -> None:
    derived = derive([], Given(), ROOMY, expected=0)
    assert reason(derived, "--enable-lora") == "no adapter yet, more may come"
    assert reason(derived, "--max-loras").startswith("no adapter yet; 4 at least, for those that may come")
    some = derive(adapters(8), Given(), ROOMY, expected=5)
    assert reason(some, "--max-loras").startswith("1 adapter and 5 yet to come, one slot each")


def test_flags_that_no_adapter_fits_are_named_with_the_way_out() -> None:
    with pytest.raises(FlagError) as caught:
        derive(adapters(8, 24), Given(enable_lora=False, max_lora_rank=16), ROOMY)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "--no-enable-lora" in lines[0]
    assert "'lora-1'" in lines[1] and "rank 24" in lines[1] and "set it to 32" in lines[1]


def test_lora_cannot_be_off_where_adapters_may_come() -> None:
    with pytest.raises(FlagError, match="--no-enable-lora is set, but adapters may come"):
        derive([], Given(enable_lora=False), ROOMY, expected=0)
