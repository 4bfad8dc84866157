"""Adjustment of `--gpu-memory-utilization`, so that the classifiers fit on the GPU beside the engine."""

import logging
from argparse import Namespace

from rich.filesize import decimal

from vllm_lora_router.classifiers.models import gpu_memory
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.server.vllm.command import VllmCommand

logger = logging.getLogger("vllm_lora_router.serve")


def reserve_classifier_memory(command: VllmCommand, args: Namespace, loaded: LoadedConfig) -> None:
    """Lower `args.gpu_memory_utilization` by the classifiers' memory, unless the user has set the flag."""
    total_bytes = command.gpu_bytes()
    # With --kv-cache-memory-bytes vLLM ignores the utilization.
    if total_bytes is None or args.kv_cache_memory_bytes:
        return
    servers, needed, configured = (
        command.api_servers(args),
        gpu_memory.needed_bytes(loaded),
        args.gpu_memory_utilization,
    )
    maximum = gpu_memory.utilization(command.default_gpu_utilization, total_bytes, needed, servers)
    if maximum is None or configured <= maximum:
        return
    total, per_server = decimal(total_bytes), decimal(needed)
    per_server += f" in each of {servers} API-server processes" if servers > 1 else ""
    if not maximum:
        fewer = " or a smaller --api-server-count" if servers > 1 else ""
        logger.warning(
            "GPU memory: the classifiers need about %s, and the GPU has %s for them and the engine; set device: cpu%s",
            per_server,
            total,
            fewer,
        )
    elif command.user_gpu_utilization is None:
        args.gpu_memory_utilization = maximum
        logger.info(
            "--gpu-memory-utilization %.2f instead of %g: the classifiers need about %s (GPU memory: %s)",
            maximum,
            configured,
            per_server,
            total,
        )
    else:
        logger.warning(
            "--gpu-memory-utilization %g may leave too little memory for the classifiers: they need about %s (GPU "
            "memory: %s); set it to %.2f or lower, or remove it",
            configured,
            per_server,
            total,
            maximum,
        )
