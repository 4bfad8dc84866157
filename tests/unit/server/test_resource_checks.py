"""Resources that the server needs later are checked before the engine starts."""

import json
import resource
from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.snapshots import SnapshotStore, default_limit
from vllm_lora_router.config import load
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.observability.audit_destination import AuditDestination, prepare_destination
from vllm_lora_router.server import resource_checks
from vllm_lora_router.server.resource_checks import check_classifier_memory, check_run_directory, resource_notices

from ..processes import kill, other_process
from ..resources import full, read_only, small_disk

MIB = 1 << 20


def configuration(folder: Path, run_dir: Path, *, adapters: str = "", router: str = "", rest: str = "") -> LoadedConfig:
    file = folder / "config.yaml"
    file.write_text(
        "model_config: {base: }\n"
        "default_model: base\n"
        "categories: [{name: general, model_scores: [{model: base}]}]\n"
        f"router: {{adapters: {{run_dir: {run_dir}{adapters}}}{router}}}\n{rest}"
    )
    return load(file)


def adapter(folder: Path, size_bytes: int) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(bytes(size_bytes))
    return folder


def check(loaded: LoadedConfig, *folders: Path, processes: int = 1, one_node: bool = True) -> list[str]:
    return check_run_directory(loaded, folders, processes=processes, one_node=one_node)


def test_disk_without_space_for_the_usage_table_is_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "200k") as disk:
        assert check(configuration(tmp_path, disk / "run")) == [
            f"the run directory {disk}/run needs 1.4 MB for the state of 1 API-server process, and its disk has 204.8 "
            "kB free; free some space, or set router.adapters.run_dir to a folder on another disk"
        ]
    with small_disk(tmp_path / "second", "2m") as disk:
        loaded = configuration(tmp_path, disk / "run")
        assert check(loaded, processes=3) == []
        (problem,) = check(loaded, processes=4)
        assert "needs 2.4 MB for the state of 4 API-server processes, and its disk has 2.1 MB free" in problem


def test_disk_without_space_for_copies_of_declared_adapters_is_refused(tmp_path: Path) -> None:
    first, second = (adapter(tmp_path / name, 12 * MIB) for name in ("first", "second"))
    with small_disk(tmp_path / "disk", "20m") as disk:
        loaded = configuration(tmp_path, disk / "run")
        assert check(loaded, first, first) == []  # more than half of the free space
        assert check(loaded, first, second) == [
            f"copies of the 2 declared adapters need 25.2 MB in {disk}/run, and its disk has 19.6 MB free for them; "
            "free some space, set router.adapters.run_dir to a folder on another disk, or set "
            "router.adapters.snapshot: off"
        ]
        assert check(loaded, first, second, one_node=False) == []
        assert check(configuration(tmp_path, disk / "run", adapters=", snapshot: off"), first, second) == []
        assert check(configuration(tmp_path, disk / "run", adapters=", max_disk_gb: 0.01"), first) == [
            "copies of the declared adapter need 12.6 MB, and router.adapters.max_disk_gb 0.01 allows 10.0 MB; raise "
            "it, or set router.adapters.snapshot: off"
        ]


def test_copies_that_share_the_disk_space_of_their_sources_need_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = adapter(tmp_path / "large", 30 * MIB)
    monkeypatch.setattr(resource_checks, "can_reflink", lambda source, folder: True)
    with small_disk(tmp_path / "disk", "20m") as disk:
        assert check(configuration(tmp_path, disk / "run"), large) == []


def test_copies_of_servers_that_ended_do_not_count(tmp_path: Path) -> None:
    large = adapter(tmp_path / "large", 12 * MIB)
    with small_disk(tmp_path / "disk", "20m") as disk:
        parent = disk / "run"
        script = 'run = RunDirectory.open("killed", parent)\n(run.folder / "copy").write_bytes(bytes(15 << 20))\n'
        with other_process(parent, script) as process:
            kill(process)
        assert check(configuration(tmp_path, parent), large) == []


def test_file_system_without_inodes_is_refused(tmp_path: Path) -> None:
    adapters = [adapter(tmp_path / name, 10) for name in ("first", "second")]
    with small_disk(tmp_path / "disk", "20m", "nr_inodes=24") as disk:
        loaded = configuration(tmp_path, disk / "run")
        assert check(loaded) == []
        (problem,) = check(loaded, *adapters)
        assert "needs 26 files, and its file system has 21 free inodes; delete some files, or set router" in problem


def test_full_and_read_only_disks_are_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        loaded = configuration(tmp_path, disk / "run")
        with full(disk):
            (problem,) = check(loaded)
            assert problem.startswith(f"the run directory {disk}/run needs 1.4 MB") and "0 bytes free" in problem
        with read_only(disk):
            (problem,) = check(loaded)
            assert f"{disk}/run is on a read-only file system; mount it for writing, or set router.adap" in problem


def test_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (problem,) = check(configuration(tmp_path, tmp_path / "file" / "run"))
    assert problem.startswith(f"the run directory {tmp_path}/file/run cannot be used") and "run_dir" in problem


def test_limit_without_max_disk_gb_has_room_for_all_declared_adapters(tmp_path: Path) -> None:
    large = adapter(tmp_path / "large", 12 * MIB)
    with small_disk(tmp_path / "disk", "20m") as disk:
        store = SnapshotStore(disk / "snapshots")
        free = store.free_bytes()
        assert default_limit(store, []) == free // 2
        limit = default_limit(store, [large, large])
        assert limit == 12 * MIB + 2 + (free - 12 * MIB - 2) // 2
        store.create(large)
        # A second process of the server computes about the same.
        assert abs(default_limit(store, [large]) - limit) < 64 * 1024


def test_classifiers_that_exceed_the_memory_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "encoder"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with (model / "model.safetensors").open("wb") as weights:
        weights.truncate(3_000_000_000)
    loaded = configuration(
        tmp_path,
        tmp_path / "run",
        rest="classifier: {embedding_model: {model_id: encoder, device: cpu}}\n"
        "embedding_rules: [{category: general, candidates: [hello]}]\n",
    )
    (problem,) = check_classifier_memory(loaded, processes=2, available_bytes=5_000_000_000)
    assert problem == (
        "the weights of the classifiers (classifier.embedding_model.model_id) need 3.0 GB of host memory in each of 2 "
        "API-server processes, and 5.0 GB are available; use smaller models, or a smaller --api-server-count"
    )
    assert check_classifier_memory(loaded, processes=1, available_bytes=5_000_000_000) == []
    assert check_classifier_memory(loaded, processes=2, available_bytes=None) == []


def test_low_limit_of_open_files_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 512))
    (notice,) = resource_notices(AuditDestination())
    assert notice.text.startswith("this process may open 512 files at most") and "ulimit -Hn" in notice.text


def test_disk_with_little_space_for_the_audit_record_gives_a_warning(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        loaded = configuration(tmp_path, tmp_path / "run", router=f", audit: {{path: {disk}, rotate_mb: 30}}")
        (notice,) = resource_notices(prepare_destination(loaded))
        assert notice.text == (
            f"router.audit.path: the disk of {disk} has 21.0 MB free, less than one file of router.audit.rotate_mb (30 "
            "MiB); lines are lost while the disk is full"
        )
