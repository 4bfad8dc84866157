"""Build the adapter pool of one API-server process from a configuration."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.snapshots import SnapshotStore
from vllm_lora_router.adapters.runtime.importer import Importer
from vllm_lora_router.adapters.runtime.loader import Engine, Loader
from vllm_lora_router.adapters.runtime.pool import AdapterPool
from vllm_lora_router.adapters.runtime.resolver import Resolver
from vllm_lora_router.adapters.runtime.slot_scheduler import SlotScheduler
from vllm_lora_router.adapters.runtime.version_log import Version, VersionLog
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import UsageTable


@dataclass(frozen=True)
class EngineLimits:
    """The LoRA limits that the engine was started with."""

    max_loras: int  # slots on the device
    max_cpu_loras: int  # adapters that the engine keeps in host memory
    max_lora_rank: int


def open_pool(
    loaded: LoadedConfig,
    resolver: Resolver,
    base: BaseModel,
    served_names: Collection[str],
    engine: Engine,
    limits: EngineLimits,
    run: RunDirectory,
) -> AdapterPool:
    """Create the adapter pool of this process. It imports no adapter yet. Reads and writes the disk.

    Raises:
        StoreError: the snapshot store cannot be created.
        RunDirectoryError: the disk has no space for the usage table.
    """
    settings = loaded.config.router.adapters
    snapshots = SnapshotStore(run.folder / "snapshots")
    snapshots.remove_unfinished()
    snapshots.set_limit(settings.max_disk_gb, resolver.declared_folders)
    version_log, usage = VersionLog(run), UsageTable(run)
    usage.refresh()
    version_log.read()

    def warm(version: Version) -> None:
        if version.content.is_snapshot:
            snapshots.warm(version.content.digest)

    return AdapterPool(
        run,
        version_log,
        usage,
        resolver,
        Importer(base, snapshots, limits.max_lora_rank, served_names, loaded.config.auto_names),
        engine,
        Loader(engine, run, capacity=limits.max_cpu_loras, max_per_s=settings.max_loads_per_s, warm=warm),
        SlotScheduler(limits.max_loras, settings.max_wait_ms / 1000, usage, run),
    )


def run_directory_parent(loaded: LoadedConfig) -> Path | None:
    """Return the folder that `router.adapters.run_dir` names for run directories; None if it names none."""
    run_dir = loaded.config.router.adapters.run_dir
    return None if run_dir is None else loaded.file.parent / Path(run_dir).expanduser()
