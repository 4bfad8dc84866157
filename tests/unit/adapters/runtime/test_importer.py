"""Which adapter files are imported, and which are rejected with the reason."""

import dataclasses
import os
import shutil
import time
from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.snapshots import Snapshot, SnapshotStore, SourceChangingError, UnreadableError
from vllm_lora_router.adapters.runtime import importer as module
from vllm_lora_router.adapters.runtime.importer import Importer, MissingFilesError, RejectedError
from vllm_lora_router.adapters.runtime.resolver import Location
from vllm_lora_router.adapters.runtime.version_log import AdapterKey

from .conftest import AUTO_NAMES, CONFIG, SERVED_NAMES, WEIGHTS, put_adapter, read_answer, write_adapter

MEDICAL = AdapterKey("medical")


@pytest.fixture
def importer(tmp_path: Path, base: BaseModel) -> Importer:
    return Importer(base, SnapshotStore(tmp_path / "snapshots"), 8, SERVED_NAMES, AUTO_NAMES)


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return copied(put_adapter(tmp_path / "medical", "v1"))


def copied(folder: Path, *, is_declared: bool = True) -> Location:
    return Location(folder, is_declared=is_declared, is_copied=True, is_watched=True)


def snapshots(importer: Importer) -> list[str]:
    return [path.name for path in importer.snapshots.folder.iterdir() if not path.name.startswith(".")]


def test_import_creates_an_immutable_snapshot_and_describes_it(importer: Importer, location: Location) -> None:
    source_signature = importer.signature(location)
    content = importer.import_adapter(MEDICAL, location)
    put_adapter(location.folder, "v2")
    assert Path(content.folder) == importer.snapshots.path(content.digest)
    assert read_answer(Path(content.folder)) == "v1"
    assert content.source_signature == source_signature != importer.signature(location)
    assert (content.rank, content.is_snapshot) == (4, True)
    assert content.size_bytes > 1000 and content.cpu_bytes


def test_equal_weights_in_other_files_have_the_same_digest(importer: Importer, location: Location) -> None:
    first = importer.import_adapter(MEDICAL, location)
    put_adapter(location.folder, "v1")
    second = importer.import_adapter(MEDICAL, location)
    assert second.digest == first.digest and second.source_signature != first.source_signature
    assert snapshots(importer) == [first.digest]


def test_adapter_that_is_not_copied_is_read_in_place_and_identified_by_its_signature(
    importer: Importer, tmp_path: Path
) -> None:
    folder = put_adapter(tmp_path / "medical", "v1")
    location = Location(folder, is_declared=True, is_copied=False, is_watched=True)
    first = importer.import_adapter(MEDICAL, location)
    assert (first.folder, first.is_snapshot) == (str(folder), False)
    assert importer.import_adapter(MEDICAL, location) == first and snapshots(importer) == []
    put_adapter(folder, "v2")
    assert importer.import_adapter(MEDICAL, location).digest != first.digest


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden": 32}, r"medical.*trained"),
        ({"rank": 16}, r"rank 16 is above the server's --max-lora-rank 8; restart it with a higher one"),
    ],
)
def test_incompatible_adapter_is_rejected_and_not_copied(
    importer: Importer, location: Location, options: dict[str, int], reason: str
) -> None:
    put_adapter(location.folder, "bad", **options)
    with pytest.raises(RejectedError, match=f"(?s){reason}") as raised:
        importer.import_adapter(MEDICAL, location)
    assert "medical" in str(raised.value) and snapshots(importer) == []


def test_pickled_weights_are_rejected(importer: Importer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "pickled", "v1")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(MissingFilesError, match=r"adapter_config\.json or adapter_model\.safetensors is missing from"):
        importer.import_adapter(MEDICAL, copied(folder))


@pytest.mark.parametrize("name", ["served-base", "MoM", "image", "two\nlines", " medical"])
def test_name_with_another_meaning_is_rejected(importer: Importer, location: Location, name: str) -> None:
    with pytest.raises(RejectedError, match=r"use another name|remove it|use 'medical'"):
        importer.import_adapter(AdapterKey(name), location)


def test_missing_files_raise_missing_files_error(importer: Importer, tmp_path: Path) -> None:
    location = copied(tmp_path / "nowhere")
    for call in (lambda: importer.signature(location), lambda: importer.import_adapter(MEDICAL, location)):
        with pytest.raises(MissingFilesError, match=r"is missing from .*nowhere"):
            call()


def test_files_that_changed_a_moment_ago_are_not_imported_yet(
    importer: Importer, location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_S", 0.4)
    put_adapter(location.folder, "v2")
    with pytest.raises(SourceChangingError):
        importer.import_adapter(MEDICAL, location)
    os.utime(location.folder / CONFIG, (0, 0))  # as copying tools do: the ctime still shows the change
    with pytest.raises(SourceChangingError):
        importer.import_adapter(MEDICAL, location)
    time.sleep(0.42)
    assert read_answer(Path(importer.import_adapter(MEDICAL, location).folder)) == "v2"


def test_files_that_are_not_watched_are_imported_at_once(
    importer: Importer, location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_S", 60.0)
    immutable = Location(location.folder, is_declared=True, is_copied=False, is_watched=False)
    assert importer.import_adapter(MEDICAL, immutable).folder == str(location.folder)


def test_modification_time_in_the_future_does_not_block_the_import(
    importer: Importer, location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_S", 0.05)
    time.sleep(0.06)
    future = time.time() + 3600
    os.utime(location.folder / WEIGHTS, (future, future))
    time.sleep(0.06)
    assert importer.import_adapter(MEDICAL, location)


def test_truncated_file_is_rejected(importer: Importer, location: Location) -> None:
    weights = location.folder / WEIGHTS
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(RejectedError, match="medical"):
        importer.import_adapter(MEDICAL, location)
    assert snapshots(importer) == []


def test_error_of_files_that_were_replaced_meanwhile_is_not_a_rejection(location: Location, importer: Importer) -> None:
    class ReplacedSource(SnapshotStore):
        def create(self, source: Path, boundary: Path | None = None) -> Snapshot:
            put_adapter(source, "v2")
            raise UnreadableError(f"{source} existed a moment ago")

    importer.snapshots = ReplacedSource(importer.snapshots.folder)
    with pytest.raises(SourceChangingError):
        importer.import_adapter(MEDICAL, location)


def test_files_that_link_outside_of_their_source_are_rejected(importer: Importer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "source" / "medical", "v1")
    write_adapter(tmp_path / "elsewhere", "secret")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere" / WEIGHTS)
    location = Location(folder, is_declared=False, is_copied=True, is_watched=True, boundary=tmp_path / "source")
    with pytest.raises(RejectedError, match=r"links to .*elsewhere.*copy the adapter into the source"):
        importer.import_adapter(MEDICAL, location)


def test_deleted_snapshot_is_created_again(importer: Importer, location: Location) -> None:
    content = importer.import_adapter(MEDICAL, location)
    Path(content.folder).chmod(0o700)
    shutil.rmtree(content.folder)
    assert importer.import_adapter(MEDICAL, location) == content
    assert read_answer(Path(content.folder)) == "v1"


def test_warnings_about_an_adapter_are_logged_once(
    importer: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    validate = module.validate_adapter
    warnings = ["vLLM skips 2 modules"]
    monkeypatch.setattr(
        module,
        "validate_adapter",
        lambda *arguments: dataclasses.replace(validate(*arguments), warnings=tuple(warnings)),
    )
    uploaded = copied(put_adapter(tmp_path / "uploaded", "v1"), is_declared=False)
    declared = copied(put_adapter(tmp_path / "declared", "v1"))
    for content in ("v1", "v2"):
        put_adapter(uploaded.folder, content)
        for _ in range(2):
            importer.import_adapter(AdapterKey("uploaded"), uploaded)
            importer.import_adapter(AdapterKey("declared"), declared)
    assert caplog.messages == ["adapter uploaded: vLLM skips 2 modules"]
    caplog.clear()
    warnings.append("1 module has no effect")
    for key, location in (("uploaded", uploaded), ("declared", declared)):
        put_adapter(location.folder, "v3")
        importer.import_adapter(AdapterKey(key), location)
    assert caplog.messages == [f"adapter {key}: 1 module has no effect" for key in ("uploaded", "declared")]
