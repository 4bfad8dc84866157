"""What `GET /v1/router/adapters` says: every adapter, where it is and what it takes."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vllm_lora_router.adapters.files.memory import base_bytes, slot_bytes
from vllm_lora_router.adapters.runtime.version_log import Key, Version

if TYPE_CHECKING:
    from vllm_lora_router.adapters.runtime.pool import AdapterPool
    from vllm_lora_router.adapters.runtime.version_manager import Held


async def report(pool: "AdapterPool") -> dict[str, Any]:
    """As this process sees it; memory is the engine's, the first one's where there are several."""
    loaded = frozenset(await pool.engine.loaded())
    running = pool.slots.running
    keys = dict.fromkeys(
        [*pool.shelf.held, *await pool.shelf.on_disk(lambda: pool.catalogue.names(None, everything=True))]
    )
    adapters = [_adapter(pool, key, pool.shelf.held.get(key), loaded, running) for key in keys]
    snapshots = pool.shelf.intake.snapshots
    base = await pool.shelf.on_disk(lambda: base_bytes(pool.shelf.intake.base))
    in_memory = [version for version in pool.shelf.ledger.versions.values() if version.id in loaded]
    slot = slot_bytes(pool.shelf.intake.base, pool.shelf.intake.max_rank)
    return {
        "adapters": adapters,
        "slots": {
            "number": pool.slots.limit,
            "running": len(running),
            "bytes": None if slot is None else slot * pool.slots.limit,
        },
        "host_memory": {"number": pool.loader.capacity, "loaded": len(in_memory), "bytes": _sum(in_memory)},
        "disk": {
            "folder": str(snapshots.folder),
            "bytes": await pool.shelf.on_disk(snapshots.used_bytes),
            "bytes_allowed": snapshots.max_bytes,
        },
        "as_full_models": {
            "number": len(adapters),
            "bytes": None if base is None else base * len(adapters),
            "base_bytes": base,
        },
    }


def _sum(versions: Collection[Version]) -> int:
    return sum(version.content.cpu_bytes or 0 for version in versions)


def _adapter(
    pool: "AdapterPool", key: Key, held: "Held | None", loaded: Collection[int], running: Collection[int]
) -> dict[str, Any]:
    about: dict[str, Any] = {"name": key.name, "tenant": key.tenant}
    if held is None or held.place is None:
        return {**about, "declared": key.name in pool.catalogue.declared, "state": "not asked for yet"}
    about |= {
        "source": str(held.place.folder),
        "declared": held.place.declared,
        "state": _state(held, loaded),
        "refused": held.refused,
        "last_used": datetime.fromtimestamp(held.used, UTC).isoformat(timespec="seconds") if held.used else None,
    }
    if (version := held.version) is None:
        return about
    content = version.content
    use = pool.board.uses.get(version.id)
    load_s = pool.loader.seconds.get(version.id)
    return about | {
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


def _state(held: "Held", loaded: Collection[int]) -> str:
    if held.coming is not None:
        return "changing"
    if held.version is None:
        return "refused" if held.refused else "not asked for yet"
    return "loaded" if held.version.id in loaded else "on disk"
