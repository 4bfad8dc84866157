"""From a configuration to the adapters of one of the server's processes."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.snapshots import Snapshots
from vllm_lora_router.adapters.runtime.importer import Intake
from vllm_lora_router.adapters.runtime.loader import Engine, Loader
from vllm_lora_router.adapters.runtime.pool import AdapterPool
from vllm_lora_router.adapters.runtime.resolver import Catalogue
from vllm_lora_router.adapters.runtime.slot_scheduler import Slots
from vllm_lora_router.adapters.runtime.version_log import Ledger, Version
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import Board


@dataclass(frozen=True)
class Limits:
    """What the engine was started with."""

    max_loras: int  # slots on the device
    max_cpu_loras: int  # adapters that it keeps in memory
    max_lora_rank: int


def open_pool(
    loaded: Loaded,
    catalogue: Catalogue,
    base: BaseModel,
    served_names: Collection[str],
    engine: Engine,
    limits: Limits,
    run: RunDirectory,
) -> AdapterPool:
    """The adapters of this process; nothing is taken in yet. Reads and writes the disk.

    Raises:
        SnapshotError: there is no place for copies.
    """
    settings = loaded.config.router.adapters
    free = shutil.disk_usage(run.folder).free
    max_bytes = int(settings.max_disk_gb * 1e9) if settings.max_disk_gb is not None else free // 2
    snapshots = Snapshots(run.folder / "snapshots", max_bytes)
    snapshots.clean()
    ledger, board = Ledger(run), Board(run)
    board.look_around()
    ledger.read()

    def warm(version: Version) -> None:
        if version.content.private:
            snapshots.warm(version.content.digest)

    return AdapterPool(
        run,
        ledger,
        board,
        catalogue,
        Intake(base, snapshots, limits.max_lora_rank, served_names, loaded.config.auto_names),
        engine,
        Loader(engine, run, capacity=limits.max_cpu_loras, max_per_s=settings.max_loads_per_s, warm=warm),
        Slots(limits.max_loras, settings.max_wait_ms / 1000, board, run),
    )


def run_parent(loaded: Loaded) -> Path | None:
    """The folder that the configuration gives for run directories."""
    given = loaded.config.router.adapters.run_dir
    return None if given is None else loaded.file.parent / Path(given).expanduser()
