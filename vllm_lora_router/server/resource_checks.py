"""Checks, before the engine starts, that the resources are available which the server needs later."""

import logging
import resource
from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from vllm_lora_router.adapters.files.snapshots import RESERVED_BYTES, can_reflink, folder_bytes
from vllm_lora_router.adapters.runtime.factory import run_directory_parent
from vllm_lora_router.classifiers.models.gpu_memory import host_bytes
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.warnings import ConfigWarning
from vllm_lora_router.coordination.run_directory import RunDirectoryError, prepare_parent
from vllm_lora_router.coordination.shortage import free_bytes, free_inodes
from vllm_lora_router.coordination.usage_table import TABLE_BYTES
from vllm_lora_router.observability.audit_destination import AuditDestination

# Files of a run directory apart from those of one process and of one adapter.
SHARED_FILES = 16
FILES_PER_PROCESS = 4
FILES_PER_COPY = 3  # a folder with two files

# vLLM raises the soft limit to the hard one. Each request in progress uses a descriptor, and so do the engine's
# sockets, the models' files and the run directory.
MIN_DESCRIPTORS = 1024

ON_ANOTHER_DISK = "set router.adapters.run_dir to a folder on another disk"


def check_run_directory(loaded: LoadedConfig, folders: Sequence[Path], *, processes: int, one_node: bool) -> list[str]:
    """Return why the run directory cannot hold the files of a server, with the keys to change.

    Args:
        loaded: the configuration.
        folders: the folders of the declared adapters.
        processes: number of API-server processes.
        one_node: whether all engines run on this node. Otherwise adapters are not copied.
    """
    try:
        parent = prepare_parent(run_directory_parent(loaded))
    except RunDirectoryError as error:
        return [str(error)]
    settings = loaded.config.router.adapters
    copied = list(dict.fromkeys(map(Path.resolve, folders))) if settings.snapshot == "auto" and one_node else []
    tables = processes * TABLE_BYTES + RESERVED_BYTES
    free = free_bytes(parent)
    if free < tables:
        return [
            f"the run directory {parent} needs {decimal(tables)} for the state of {processes} API-server "
            f"process{'es' if processes > 1 else ''}, and its disk has {decimal(free)} free; free some space, or "
            f"{ON_ANOTHER_DISK}"
        ]
    problems: list[str] = []
    files = SHARED_FILES + FILES_PER_PROCESS * processes + FILES_PER_COPY * len(copied)
    inodes = free_inodes(parent)
    if inodes is not None and inodes < files:
        problems.append(
            f"the run directory {parent} needs {files} files, and its file system has {inodes} free inodes; delete "
            f"some files, or {ON_ANOTHER_DISK}"
        )
    sizes = {folder: folder_bytes(folder) for folder in copied}
    total, limit = sum(sizes.values()), settings.max_disk_gb
    adapters = "the declared adapter" if len(copied) == 1 else f"the {len(copied)} declared adapters"
    if limit is not None and total > limit * 1e9:
        problems.append(
            f"copies of {adapters} need {decimal(total)}, and router.adapters.max_disk_gb {limit:g} allows "
            f"{decimal(int(limit * 1e9))}; raise it, or set router.adapters.snapshot: off"
        )
    needed = tables + sum(size for folder, size in sizes.items() if not can_reflink(folder, parent))
    if needed > max(free, tables):
        problems.append(
            f"copies of {adapters} need {decimal(needed - tables)} in {parent}, and its disk has "
            f"{decimal(free - tables)} free for them; free some space, {ON_ANOTHER_DISK}, or set "
            "router.adapters.snapshot: off"
        )
    return problems


def check_classifier_memory(loaded: LoadedConfig, *, processes: int, available_bytes: int | None) -> list[str]:
    """Return why the classifiers' models do not fit into host memory.

    Args:
        loaded: the configuration.
        processes: number of API-server processes, each of which loads the models.
        available_bytes: the memory that this machine or container has available; None: unknown.
    """
    models = host_bytes(loaded)
    needed = sum(models.values()) * processes
    if available_bytes is None or needed <= available_bytes:
        return []
    each = f" in each of {processes} API-server processes" if processes > 1 else ""
    fewer = ", or a smaller --api-server-count" if processes > 1 else ""
    keys = " and ".join(f"classifier.{key}.model_id" for key in models)
    return [
        f"the weights of the classifiers ({keys}) need {decimal(sum(models.values()))} of host memory{each}, and "
        f"{decimal(available_bytes)} are available; use smaller models{fewer}"
    ]


def resource_notices(audit: AuditDestination) -> list[ConfigWarning]:
    """Return warnings about resources that may run out under load."""
    notices: list[str] = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < MIN_DESCRIPTORS:
        notices.append(
            f"this process may open {hard} files at most, and every request in progress uses one; raise the hard limit "
            f"(ulimit -Hn, or LimitNOFILE= of systemd) to {MIN_DESCRIPTORS} or more"
        )
    if audit.folder is not None and (free := free_bytes(audit.folder)) < audit.settings.rotate_mb * 2**20:
        notices.append(
            f"router.audit.path: the disk of {audit.folder} has {decimal(free)} free, less than one file of "
            f"router.audit.rotate_mb ({audit.settings.rotate_mb:g} MiB); lines are lost while the disk is full"
        )
    return [ConfigWarning(logging.WARNING, notice) for notice in notices]
