"""What is taken from other people's files, and what is refused with the reason."""

import os
import shutil
import time
from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.snapshots import Snapshot, Snapshots, Unreadable
from vllm_lora_router.adapters.runtime import importer as module
from vllm_lora_router.adapters.runtime.importer import Gone, Intake, Refused, Unsettled
from vllm_lora_router.adapters.runtime.resolver import Place
from vllm_lora_router.adapters.runtime.version_log import Key

from .conftest import AUTO_NAMES, CONFIG, SERVED_NAMES, WEIGHTS, put, read, write

MEDICAL = Key("medical")


@pytest.fixture
def intake(tmp_path: Path, base: BaseModel) -> Intake:
    return Intake(base, Snapshots(tmp_path / "snapshots"), 8, SERVED_NAMES, AUTO_NAMES)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(put(tmp_path / "medical", "v1"), declared=True, copied=True, watched=True)


def copies(intake: Intake) -> list[str]:
    return [path.name for path in intake.snapshots.folder.iterdir() if not path.name.startswith(".")]


def test_what_is_taken_is_a_copy_that_stays_and_a_description_of_it(intake: Intake, place: Place) -> None:
    source = intake.look(place)
    content = intake.take(MEDICAL, place)
    put(place.folder, "v2")
    assert Path(content.folder) == intake.snapshots.path(content.digest) and read(Path(content.folder)) == "v1"
    assert content.source == source != intake.look(place)
    assert (content.rank, content.private) == (4, True)
    assert content.size_bytes > 1000 and content.cpu_bytes


def test_the_same_weights_in_other_files_are_the_same_content(intake: Intake, place: Place) -> None:
    first = intake.take(MEDICAL, place)
    put(place.folder, "v1")
    second = intake.take(MEDICAL, place)
    assert second.digest == first.digest and second.source != first.source
    assert copies(intake) == [first.digest]


def test_what_is_not_copied_is_read_where_it_lies_and_known_by_its_looks(intake: Intake, tmp_path: Path) -> None:
    place = Place(put(tmp_path / "medical", "v1"), declared=True, copied=False, watched=True)
    first = intake.take(MEDICAL, place)
    assert (first.folder, first.private) == (str(place.folder), False)
    assert intake.take(MEDICAL, place) == first and copies(intake) == []
    put(place.folder, "v2")
    assert intake.take(MEDICAL, place).digest != first.digest


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"hidden": 32}, r"medical.*trained"),
        ({"rank": 16}, r"rank 16 is above --max-lora-rank 8, with which the server was started"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_not_copied(
    intake: Intake, place: Place, made: dict[str, int], reason: str
) -> None:
    put(place.folder, "bad", **made)
    with pytest.raises(Refused, match=f"(?s){reason}") as raised:
        intake.take(MEDICAL, place)
    assert "medical" in str(raised.value) and copies(intake) == []


def test_pickled_weights_are_refused(intake: Intake, place: Place, tmp_path: Path) -> None:
    folder = write(tmp_path / "pickled", "v1")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(Gone, match=r"has no adapter_config\.json and adapter_model\.safetensors"):
        intake.take(MEDICAL, Place(folder, declared=True, copied=True, watched=True))


@pytest.mark.parametrize("name", ["served-base", "MoM", "image", "two\nlines", " medical"])
def test_a_name_that_means_something_else_is_refused(intake: Intake, place: Place, name: str) -> None:
    with pytest.raises(Refused, match=r"call it otherwise|take it out|write 'medical'"):
        intake.take(Key(name), place)


def test_missing_files_are_gone_and_not_refused_for_good(intake: Intake, tmp_path: Path) -> None:
    place = Place(tmp_path / "nowhere", declared=True, copied=True, watched=True)
    for do in (lambda: intake.look(place), lambda: intake.take(MEDICAL, place)):
        with pytest.raises(Gone, match=r"nowhere has no adapter_config\.json and"):
            do()


def test_files_that_were_written_to_just_now_are_waited_for(
    intake: Intake, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_S", 0.4)
    put(place.folder, "v2")
    with pytest.raises(Unsettled):
        intake.take(MEDICAL, place)
    os.utime(place.folder / CONFIG, (0, 0))  # as copying tools do: the content is as new as it was
    with pytest.raises(Unsettled):
        intake.take(MEDICAL, place)
    time.sleep(0.42)
    assert read(Path(intake.take(MEDICAL, place).folder)) == "v2"


def test_files_that_nobody_changes_are_taken_at_once(
    intake: Intake, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_S", 60.0)
    still = Place(place.folder, declared=True, copied=False, watched=False)
    assert intake.take(MEDICAL, still).folder == str(place.folder)


def test_a_clock_that_is_behind_the_files_keeps_nothing_out(
    intake: Intake, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_S", 0.05)
    time.sleep(0.06)
    os.utime(place.folder / WEIGHTS, (time.time() + 3600,) * 2)
    time.sleep(0.06)
    assert intake.take(MEDICAL, place)


def test_half_a_file_is_refused(intake: Intake, place: Place) -> None:
    weights = place.folder / WEIGHTS
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(Refused, match="medical"):
        intake.take(MEDICAL, place)
    assert copies(intake) == []


def test_what_is_replaced_while_it_is_read_is_no_fault_of_its_own(place: Place, intake: Intake) -> None:
    class Replaced(Snapshots):
        def take(self, source: Path, within: Path | None = None) -> Snapshot:
            put(source, "v2")
            raise Unreadable(f"{source} was there a moment ago")

    intake.snapshots = Replaced(intake.snapshots.folder)
    with pytest.raises(Unsettled):
        intake.take(MEDICAL, place)


def test_files_that_lead_out_of_their_source_are_refused(intake: Intake, tmp_path: Path) -> None:
    folder = write(tmp_path / "source" / "medical", "v1")
    write(tmp_path / "elsewhere", "secret")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere" / WEIGHTS)
    place = Place(folder, declared=False, copied=True, watched=True, within=tmp_path / "source")
    with pytest.raises(Refused, match=r"leads to .*elsewhere.*copy the adapter into the source"):
        intake.take(MEDICAL, place)


def test_a_copy_that_somebody_deleted_is_made_again(intake: Intake, place: Place) -> None:
    content = intake.take(MEDICAL, place)
    Path(content.folder).chmod(0o700)
    shutil.rmtree(content.folder)
    assert intake.take(MEDICAL, place) == content
    assert read(Path(content.folder)) == "v1"
