"""Response model of `GET /v1/router/adapters`."""

from typing import Literal

from vllm_lora_router.server.schemas.common import Model


class AdapterStatus(Model):
    """One adapter. Fields are absent until the adapter is requested for the first time or has a version."""

    name: str
    """The adapter's name."""
    tenant: str | None
    """The tenant that owns it; null: all tenants."""
    declared: bool
    """Whether the configuration or the command line declares it."""
    state: Literal["not requested yet", "unavailable", "updating", "refused", "loaded", "on disk"]
    """`not requested yet`: no version is served; `unavailable`: a resource of the server has run out, such as disk
    space, or the file system does not answer, and no version is served until that ends; `updating`: a new version is
    being loaded while the current one is served; `refused`: its files are invalid and no version is served; `loaded`:
    in the engine's memory; `on disk`: imported, not in the engine's memory."""
    source: str | None = None
    """The folder that it is imported from."""
    refused: str | None = None
    """Why its current files are refused or cannot be loaded now; null: they are accepted."""
    last_used: str | None = None
    """When a request last used it (RFC 3339, UTC)."""
    version: str | None = None
    """The name of the version that is served, as in the answer's `model`."""
    id: int | None = None
    """The version's LoRA id in vLLM."""
    content: str | None = None
    """The first eight hexadecimal digits of the content's SHA-256."""
    rank: int | None = None
    """The LoRA rank."""
    leases: int | None = None
    """The number of requests that use this version, in all processes."""
    load_ms: float | None = None
    """The duration of its last load into the engine, in milliseconds; null: this process has not loaded it."""
    disk_bytes: int | None = None
    """The size of its snapshot in bytes."""
    host_memory_bytes: int | None = None
    """Its size in the engine's host memory in bytes; null: unknown."""
    in_slot: bool | None = None
    """Whether requests of it run in a slot now."""


class SlotStatus(Model):
    """The LoRA slots on the device (`--max-loras`)."""

    number: int
    """The number of slots."""
    running: int
    """The number of slots in use."""
    bytes: int | None
    """The device memory of all slots in bytes; null: unknown."""


class HostMemoryStatus(Model):
    """The adapters in the engine's host memory (`--max-cpu-loras`)."""

    number: int
    """The maximum number of adapters."""
    loaded: int
    """The number of adapters that are loaded."""
    bytes: int
    """The size of the loaded adapters in bytes."""


class DiskStatus(Model):
    """The snapshot store."""

    folder: str
    """The folder."""
    bytes: int
    """The size of all snapshots in bytes."""
    bytes_allowed: int | None
    """The maximum size in bytes (`router.adapters.max_disk_gb`); null: no limit."""


class FullModelEstimate(Model):
    """The memory that one full model per adapter would need."""

    number: int
    """The number of adapters."""
    bytes: int | None
    """The size of that many base models in bytes; null: unknown."""
    base_bytes: int | None
    """The size of the base model in bytes; null: unknown."""


class AdaptersResponse(Model):
    """The adapters as this process sees them. Memory is that of the first engine."""

    adapters: list[AdapterStatus]
    """The adapters; empty: the server runs without LoRA, or has no adapter yet."""
    slots: SlotStatus | None = None
    """The slots on the device; absent: the server runs without LoRA."""
    host_memory: HostMemoryStatus | None = None
    """The engine's host memory; absent: the server runs without LoRA."""
    disk: DiskStatus | None = None
    """The snapshot store; absent: the server runs without LoRA."""
    not_answering: list[str] | None = None
    """The folders of sources, and those with declared adapters, whose file system does not answer; absent: the server
    runs without LoRA."""
    full_models: FullModelEstimate | None = None
    """An estimate for comparison; absent: the server runs without LoRA."""
