"""Ids are different, and those of two processes too."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

from vllm_lora_router.protocols.ids import AT_ONCE, new_id


def test_ids_are_different_and_look_like_those_of_vllm() -> None:
    drawn = [new_id() for _ in range(3 * AT_ONCE + 1)]
    assert len(set(drawn)) == len(drawn)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in drawn)


def test_threads_draw_no_id_twice() -> None:
    with ThreadPoolExecutor(8) as threads:
        drawn = list(threads.map(lambda _: new_id(), range(5000)))
    assert len(set(drawn)) == len(drawn)


def test_a_fork_draws_others() -> None:
    new_id()
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 64).decode() not in {new_id() for _ in range(AT_ONCE)}
