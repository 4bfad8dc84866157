"""The report on all adapters that `GET /v1/router/adapters` returns: where each one is and how much memory it takes."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.memory import base_bytes, slot_bytes
from vllm_lora_router.adapters.runtime.disk_calls import NotAnsweringError
from vllm_lora_router.adapters.runtime.loader import Engine
from vllm_lora_router.adapters.runtime.slot_scheduler import SlotScheduler
from vllm_lora_router.adapters.runtime.version_log import AdapterKey, Version
from vllm_lora_router.adapters.runtime.version_manager import AdapterState, VersionManager


async def report(
    manager: VersionManager, existing: Collection[AdapterKey], engine: Engine, slot_scheduler: SlotScheduler
) -> dict[str, Any]:
    """Return the report as this process sees it, as values for JSON.

    Memory figures are of one engine, the first one if there are several.

    Args:
        existing: the adapters that exist, whether or not they have been requested.
    """
    loaded = frozenset(await engine.loaded())
    running = slot_scheduler.running
    keys = dict.fromkeys([*manager.states, *existing])
    adapters = [_adapter(manager, key, manager.states.get(key), loaded, running) for key in keys]
    snapshots, base = manager.importer.snapshots, manager.importer.base
    base_size_bytes = await _base_bytes(manager, base)
    in_memory = [version for version in manager.version_log.versions.values() if version.id in loaded]
    slot = slot_bytes(base, manager.importer.max_rank)
    return {
        "adapters": adapters,
        "slots": {
            "number": slot_scheduler.limit,
            "running": len(running),
            "bytes": None if slot is None else slot * slot_scheduler.limit,
        },
        "host_memory": {"number": manager.loader.capacity, "loaded": len(in_memory), "bytes": _cpu_bytes(in_memory)},
        "disk": {
            "folder": str(snapshots.folder),
            "bytes": await manager.run_in_thread(snapshots.used_bytes),
            "bytes_allowed": snapshots.max_bytes,
        },
        "not_answering": [str(disk.root) for disk in manager.disks.values() if not disk.is_answering],
        "full_models": {
            "number": len(adapters),
            "bytes": None if base_size_bytes is None else base_size_bytes * len(adapters),
            "base_bytes": base_size_bytes,
        },
    }


async def _base_bytes(manager: VersionManager, base: BaseModel) -> int | None:
    if base.folder is None:
        return None
    try:
        return await manager.disk(base.folder).run(lambda: base_bytes(base))
    except NotAnsweringError:
        return None


def _cpu_bytes(versions: Collection[Version]) -> int:
    return sum(version.content.cpu_bytes or 0 for version in versions)


def _adapter(
    manager: VersionManager,
    key: AdapterKey,
    state: AdapterState | None,
    loaded: Collection[int],
    running: Collection[int],
) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": key.name, "tenant": key.tenant}
    shortage = manager.shortages.get(key)
    if state is None or state.location is None:
        entry |= {"declared": key.name in manager.resolver.declared, "state": "not requested yet"}
        return entry if shortage is None else {**entry, "state": "unavailable", "refused": shortage.reason}
    reason = shortage.reason if shortage is not None else manager.disk(state.location.root).problem
    last_used = datetime.fromtimestamp(state.last_used, UTC).isoformat(timespec="seconds") if state.last_used else None
    entry |= {
        "source": str(state.location.folder),
        "declared": state.location.is_declared,
        "state": "unavailable" if reason is not None and state.version is None else _state(state, loaded),
        "refused": state.rejection if reason is None else reason,
        "last_used": last_used,
    }
    if (version := state.version) is None:
        return entry
    content = version.content
    use = manager.usage.uses.get(version.id)
    load_s = manager.loader.seconds.get(version.id)
    return entry | {
        "version": version.engine_name,
        "id": version.id,
        "content": content.digest[:8],
        "rank": content.rank,
        "leases": 0 if use is None else use.leases,
        "load_ms": None if load_s is None else round(load_s * 1000, 1),
        "disk_bytes": content.size_bytes,
        "host_memory_bytes": content.cpu_bytes if version.id in loaded else 0,
        "in_slot": version.id in running,
    }


def _state(state: AdapterState, loaded: Collection[int]) -> str:
    if state.pending is not None:
        return "updating"
    if state.version is None:
        return "refused" if state.rejection else "not requested yet"
    return "loaded" if state.version.id in loaded else "on disk"
