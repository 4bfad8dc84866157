"""vLLM's `serve` command line: its arguments, the memory that they leave for adapters, and its start.

vLLM is imported inside the functions: the import takes seconds, and the environment must be prepared before it.
"""

import logging
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.memory import slot_bytes
from vllm_lora_router.server.vllm.lifecycle import STOP_S, forward_second_signal
from vllm_lora_router.server.vllm.lora_flags import AvailableMemory


class VllmCommand:
    """The `vllm serve` command."""

    LORA_FLAGS = ("enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank")
    GPU_UTILIZATION_FLAG = "gpu_memory_utilization"
    SHUTDOWN_FLAG = "shutdown_timeout"

    def __init__(self) -> None:
        _prepare_environment()
        self._parser, self._serve = _parser()
        self.user_gpu_utilization: float | None = None  # the user's --gpu-memory-utilization, set by `parse`
        self.user_shutdown_timeout: int | None = None  # the user's --shutdown-timeout, set by `parse`

    def parse(self, argv: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
        """Return the arguments as vLLM parses them, and the user's LoRA flags; a flag that is not set is None.

        Exits the process, like vLLM, when the arguments are invalid or ask for help.
        """
        flags = (*self.LORA_FLAGS, self.GPU_UTILIZATION_FLAG, self.SHUTDOWN_FLAG)
        defaults = {name: self._serve.get_default(name) for name in flags}
        self._serve.set_defaults(**dict.fromkeys(flags))
        args = self._parser.parse_args(["serve", *argv])
        self._serve.set_defaults(**defaults)
        user_flags = {name: getattr(args, name) for name in flags}
        for name, value in user_flags.items():
            setattr(args, name, defaults[name] if value is None else value)
        self.user_gpu_utilization = user_flags.pop(self.GPU_UTILIZATION_FLAG)
        self.user_shutdown_timeout = user_flags.pop(self.SHUTDOWN_FLAG)
        _configure_logging(args)
        return args, user_flags

    def add_flags(self, args: Namespace, flags: Sequence[str]) -> None:
        """Add LoRA flags to `args`, parsed by vLLM."""
        added = self._parser.parse_args(["serve", *flags])
        for name in ("lora_modules", *self.LORA_FLAGS):
            if f"--{name.replace('_', '-')}" in flags:
                setattr(args, name, getattr(added, name))

    def set_shutdown_timeout(self, args: Namespace, drain_s: float) -> str:
        """Set --shutdown-timeout to the time for running requests and the time to stop; return the explanation.

        Args:
            drain_s: the time for running requests in seconds, unless the user has set --shutdown-timeout.
        """
        user = self.user_shutdown_timeout
        drain = math.ceil(drain_s) if user is None else user
        args.shutdown_timeout = drain + STOP_S
        source = f"router.drain_s {drain_s:g}" if user is None else f"yours of {user}"
        return (
            f"--shutdown-timeout {args.shutdown_timeout}: {source}, and {STOP_S} s to end streams and stop the engine"
        )

    def available_memory(self, args: Namespace, base: BaseModel) -> AvailableMemory:
        """Return the memory that is available for adapters before the engine starts."""
        memory = psutil.virtual_memory()
        # If the driver does not report the GPU's memory, the number of slots depends only on the number of adapters.
        device_bytes = self.gpu_bytes() if _has_gpu() else memory.total
        workers = args.tensor_parallel_size * args.pipeline_parallel_size * (args.data_parallel_size_local or 1)
        return AvailableMemory(
            device_bytes,
            _container_bytes(memory.available),
            slot_bytes(base, rank=1),
            workers=workers,
        )

    def gpu_bytes(self) -> int | None:
        """Return the total memory of one GPU; None if the engine uses no GPU or the driver does not report it."""
        from vllm.platforms import current_platform

        try:
            return current_platform.get_device_total_memory() if _has_gpu() else None
        except Exception:
            return None

    @property
    def default_gpu_utilization(self) -> float:
        """vLLM's default for --gpu-memory-utilization."""
        return self._serve.get_default(self.GPU_UTILIZATION_FLAG)

    def api_servers(self, args: Namespace) -> int:
        """Return the number of API-server processes on this host, as `ServeSubcommand.cmd` computes it."""
        local = args.data_parallel_size_local
        if args.headless or local == 0:
            return 0
        if getattr(args, "data_parallel_multi_port_external_lb", False):
            return local or 1  # one per engine, and each of them sees the same first GPU
        count = args.api_server_count
        if count is None:
            if args.data_parallel_external_lb or args.data_parallel_rank is not None:
                count = 1
            elif args.data_parallel_hybrid_lb or args.data_parallel_start_rank is not None:
                count = local or 1
            else:
                count = args.data_parallel_size
        return min(count, 1) if getattr(args, "enable_elastic_ep", False) else count

    def is_on_one_node(self, args: Namespace) -> bool:
        """Return whether all engines read the same disks as this process, as far as the arguments tell."""
        local = args.data_parallel_size_local
        if args.data_parallel_external_lb or args.data_parallel_rank is not None:
            local = 1
        several = local is not None and args.data_parallel_size > local
        return not several and getattr(args, "nnodes", 1) == 1 and args.distributed_executor_backend != "ray"

    def plugin_conflict(self, args: Namespace) -> str | None:
        """Return why a server with these arguments would not load endpoint plugins, or None."""
        if getattr(args, "grpc", False):
            return "--grpc: the gRPC server loads no endpoint plugins and would not route; remove the flag"
        if _uses_rust_front_end():
            return "VLLM_USE_RUST_FRONTEND: the Rust front end loads no endpoint plugins and would not route; unset it"
        return None

    def run(self, args: Namespace) -> None:
        """Serve until the process is stopped."""
        from vllm.entrypoints.cli.serve import ServeSubcommand

        command = ServeSubcommand()
        command.validate(args)
        if self.api_servers(args) > 1:
            forward_second_signal()
        command.cmd(args)


def base_model(args: Namespace) -> BaseModel:
    """Return the base model that vLLM's arguments name, with the files that are on disk."""
    name = getattr(args, "model_tag", None) or args.model
    download_dir = getattr(args, "download_dir", None)
    model = BaseModel.find(name, getattr(args, "revision", None), Path(download_dir) if download_dir else None)
    return replace(model, chat_template=True) if getattr(args, "chat_template", None) else model


def installed_release() -> str:
    """Return the installed release of vLLM, without the suffix of the build."""
    import vllm

    return vllm.__version__.partition("+")[0]


def share_vllm_log_handlers() -> None:
    """Send our log lines to vLLM's log handlers: vLLM configures no logger except its own."""
    router_logger, vllm_logger = logging.getLogger("vllm_lora_router"), logging.getLogger("vllm")
    if not router_logger.handlers and vllm_logger.handlers:
        router_logger.handlers = list(vllm_logger.handlers)
        router_logger.setLevel(vllm_logger.level)
        router_logger.propagate = False


def _container_bytes(host_bytes: int) -> int:
    """Return the available host memory, at most what the container's cgroup allows."""
    try:
        from vllm.utils.cpu_resource_utils import get_cgroup_memory_limit, get_cgroup_memory_usage
    except ImportError:  # vLLM before 0.27
        return host_bytes
    limit, usage = get_cgroup_memory_limit(), get_cgroup_memory_usage()
    return host_bytes if limit is None else min(host_bytes, max(limit - (usage or 0), 0))


def _has_gpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cuda_alike()


def _prepare_environment() -> None:
    """Do the first step of vLLM's command line, after which worker processes are spawned instead of forked."""
    try:
        from vllm.entrypoints.common.startup import cli_env_setup  # vLLM 0.33
    except ImportError:
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    cli_env_setup()


def _configure_logging(args: Namespace) -> None:
    import vllm.logger

    if configure := getattr(vllm.logger, "configure_logging_from_args", None):
        configure(args)


def _parser() -> tuple[Any, Any]:
    """Return vLLM's parser and the parser of its subcommand `serve`."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    subparsers = parser.add_subparsers(required=False, dest="subparser")
    return parser, ServeSubcommand().subparser_init(subparsers)


def _uses_rust_front_end() -> bool:
    import vllm.envs

    return bool(getattr(vllm.envs, "VLLM_USE_RUST_FRONTEND", False))
