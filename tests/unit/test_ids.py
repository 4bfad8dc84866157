"""Random ids are unique across calls, threads and forked processes."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

from vllm_lora_router.ids import BATCH_SIZE, new_id


def test_ids_are_unique_and_have_the_form_of_vllm_ids() -> None:
    ids = [new_id() for _ in range(3 * BATCH_SIZE + 1)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", id_) for id_ in ids)


def test_threads_never_get_the_same_id() -> None:
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda _: new_id(), range(5000)))
    assert len(set(ids)) == len(ids)


def test_a_forked_process_gets_other_ids() -> None:
    new_id()
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 64).decode() not in {new_id() for _ in range(BATCH_SIZE)}
