"""The LoRA flags that vLLM gets."""

from pathlib import Path

import pytest

from vllm_lora_router.adapters.checks import Adapter
from vllm_lora_router.adapters.flags import MOST_SLOTS, FlagError, Given, derive


def adapters(*ranks: int) -> list[Adapter]:
    return [Adapter(f"lora-{i}", Path(f"/{i}"), rank, 1, ("q_proj",), ()) for i, rank in enumerate(ranks)]


def test_every_adapter_gets_a_slot_and_room_for_its_rank() -> None:
    assert derive(adapters(8, 24, 4), Given()) == [
        *("--enable-lora", "--max-loras", "3", "--max-cpu-loras", "3", "--max-lora-rank", "32")
    ]


def test_many_adapters_share_the_slots_and_all_stay_in_memory() -> None:
    flags = derive(adapters(*[8] * 40), Given())
    assert flags[flags.index("--max-loras") + 1] == str(MOST_SLOTS)
    assert flags[flags.index("--max-cpu-loras") + 1] == "40"


def test_what_the_user_set_stays() -> None:
    assert derive(adapters(8, 8), Given(enable_lora=True, max_loras=1, max_lora_rank=64)) == ["--max-cpu-loras", "2"]
    assert derive(adapters(8), Given(True, 4, 4, 8)) == []
    assert derive(adapters(8), Given(max_loras=4))[1:3] == ["--max-cpu-loras", "4"]  # never below the slots


def test_without_adapters_nothing_is_added() -> None:
    assert derive([], Given()) == []


def test_flags_that_no_adapter_fits_are_named_with_the_way_out() -> None:
    with pytest.raises(FlagError) as caught:
        derive(adapters(8, 24), Given(enable_lora=False, max_lora_rank=16))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "--no-enable-lora" in lines[0]
    assert "'lora-1'" in lines[1] and "rank 24" in lines[1] and "set it to 32" in lines[1]
