"""What the processes see of each other's uses."""

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import ROWS, Board, Use

from .conftest import beside

VERSION = 2**20


@pytest.fixture
def boards(run: RunDirectory) -> Iterator[tuple[Board, Board]]:
    boards = Board(run, 1), Board(run, 2)
    for board in boards:
        board.look_around()
    yield boards
    for board in boards:
        board.close()


def change(board: Board, version: int = VERSION, **values: float) -> None:
    use = board.use(version)
    for name, value in values.items():
        setattr(use, name, value)
    board.write(version)


def seen(board: Board) -> dict[int, Use]:
    """What `board` reads of the others."""
    return {version: use for report in board.others() for version, use in report.uses}


def test_every_process_sees_what_the_others_use(boards: tuple[Board, Board]) -> None:
    one, two = boards
    change(one, leases=2, running=1, running_since=5.0, waiting_since=7.0)
    change(two, VERSION + 1, leases=1)
    assert seen(two) == {VERSION: Use(2, 1, 5.0, 7.0)} and seen(one) == {VERSION + 1: Use(1)}
    assert [len(report.uses) for report in two.all()] == [1, 1]
    assert not one.alone and not two.alone


def test_what_is_used_no_more_is_seen_no_more(boards: tuple[Board, Board]) -> None:
    one, two = boards
    change(one, leases=1)
    change(one, leases=0)
    assert seen(two) == {} and one.uses == {}


def test_uses_that_come_and_go_leave_the_others_as_they_are(boards: tuple[Board, Board]) -> None:
    one, two = boards
    for version in range(VERSION, VERSION + 4):
        change(one, version, leases=version - VERSION + 1)
    for gone, new in ((VERSION + 1, VERSION + 4), (VERSION, VERSION + 5), (VERSION + 4, VERSION + 6)):
        change(one, gone, leases=0)
        change(one, new, leases=new - VERSION + 1)
    assert seen(two) == {VERSION + each: Use(each + 1) for each in (2, 3, 5, 6)}


def test_a_request_that_nobody_looked_into_is_seen_until_it_ends(boards: tuple[Board, Board]) -> None:
    one, two = boards

    def since() -> float:
        return next(two.others()).unread_since

    with one.unread():
        first = since()
        with one.unread():
            assert since() == first > 0
        inner = one.unread()
        inner.__enter__()
    assert since() > first
    inner.__exit__(None, None, None)
    assert since() == 0


def test_how_far_a_process_has_followed_the_ledger_is_seen(boards: tuple[Board, Board]) -> None:
    one, two = boards
    one.publish(17)
    change(one, leases=1)
    with one.unread():
        assert [report.sequence for report in two.others()] == [17]
    assert [report.sequence for report in one.all()] == [17, 0]


def test_a_table_takes_the_room_of_what_is_in_use_at_once(boards: tuple[Board, Board]) -> None:
    one, two = boards
    for version in range(VERSION, VERSION + 3 * ROWS):
        change(one, version, leases=1)
        change(one, version, leases=0)
    for version in range(VERSION, VERSION + ROWS):
        change(one, version, leases=1)
    assert seen(two).keys() == set(range(VERSION, VERSION + ROWS))
    with pytest.raises(OverflowError, match="8192 adapters are in use at once"):
        one.use(VERSION + ROWS)


def test_a_process_that_ended_uses_nothing(boards: tuple[Board, Board], run: RunDirectory) -> None:
    _, two = boards
    three = Board(run, 3)
    two.look_around()
    change(three, leases=1)
    assert seen(two).keys() == {VERSION}
    three.close()
    two.look_around()
    assert seen(two) == {} and len(list(two.others())) == 1


USES = """
board = Board(RunDirectory.open("server", parent), int(arguments[0]))
use = board.use(2**20)
use.leases, use.running, use.running_since = 1, 1, time.monotonic()
board.write(2**20)
"""


def test_a_killed_process_uses_nothing(tmp_path: Path, run: RunDirectory) -> None:
    board = Board(run, 1)
    with beside(tmp_path / "run", USES, "2") as process:
        board.look_around()
        assert seen(board) == {VERSION: Use(1, 1, pytest.approx(0, abs=1e9))} and not board.alone
        process.kill()
        process.wait()
        board.look_around()
        assert seen(board) == {} and board.alone
        again = Board(run, 2)  # a process's number is used again
        board.look_around()
        assert seen(board) == {} and not board.alone
        again.close()
    board.close()


def test_a_dead_process_does_not_seem_alive_while_others_look_at_it(
    boards: tuple[Board, Board], run: RunDirectory
) -> None:
    one, _ = boards
    dead = run.folder / "processes" / "77"
    dead.write_bytes(bytes(4096))
    with dead.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        one.look_around()
    assert len(list(one.others())) == 1


WRITES = """
board = Board(RunDirectory.open("server", parent), 2)
board.publish(17)
use = board.use(2**20)
use.leases, use.running, use.running_since = 1, 1, 5.0
board.write(2**20)
print('done', flush=True)
while True:
    board.write(2**20)
"""


def test_a_table_is_whole_whenever_it_is_read(tmp_path: Path, run: RunDirectory) -> None:
    board = Board(run, 1)
    with beside(tmp_path / "run", WRITES):
        board.look_around()
        reads = [next(board.others()) for _ in range(20_000)]
    assert {report.sequence for report in reads} == {17}
    assert all(report.uses == [(VERSION, Use(1, 1, 5.0))] for report in reads)
    board.close()
