"""vLLM's engine and its registry of adapters, as routing sees them, and its `serve` command."""

from argparse import Namespace
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.memory import slot_bytes
from vllm_lora_router.adapters.runtime.factory import Limits
from vllm_lora_router.adapters.runtime.loader import LoadError
from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, Version
from vllm_lora_router.server.vllm.lora_flags import Room

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.lora.request import LoRARequest


class VllmEngine:
    """vLLM's engine, and the registry where its API server looks up the `model` of a request."""

    def __init__(self, client: "EngineClient", models: "OpenAIServingModels") -> None:
        self._client = client
        self._models = models
        self.served_names: Sequence[str] = [path.name for path in models.base_model_paths]

    @property
    def limits(self) -> Limits | None:
        """What the engine was started with; None without --enable-lora."""
        lora = self._client.vllm_config.lora_config
        if lora is None:
            return None
        return Limits(lora.max_loras, lora.max_cpu_loras or lora.max_loras, lora.max_lora_rank)

    @property
    def is_on_one_node(self) -> bool:
        """Whether every engine reads the disks that this process reads."""
        parallel = self._client.vllm_config.parallel_config
        several = parallel.data_parallel_size > parallel.data_parallel_size_local or getattr(parallel, "nnodes", 1) > 1
        return not several and parallel.distributed_executor_backend != "ray"

    async def load(self, version: Version) -> None:
        try:
            await self._client.add_lora(_request(version))
        except Exception as error:
            # A half of it may be left, which the next attempt would take for the whole.
            with suppress(Exception):
                await self.unload(version.id)
            raise LoadError(f"vLLM cannot load it: {error}") from error

    async def unload(self, identifier: int) -> None:
        await self._client.remove_lora(identifier)  # pyright: ignore[reportAttributeAccessIssue]

    async def loaded(self) -> Collection[int]:
        return await self._client.list_loras()  # pyright: ignore[reportAttributeAccessIssue]

    def register(self, key: str, version: Version) -> None:
        self._models.lora_requests[key] = _request(version)

    def unregister(self, key: str) -> None:
        self._models.lora_requests.pop(key, None)

    async def drop_others(self) -> None:
        """Takes out what vLLM loaded from the command line itself: it is served by versions of ours."""
        for key, request in list(self._models.lora_requests.items()):
            if request.lora_int_id < FIRST_ID:
                del self._models.lora_requests[key]
                await self.unload(request.lora_int_id)


def _request(version: Version) -> "LoRARequest":
    from vllm.lora.request import LoRARequest

    content = version.content
    request = LoRARequest(version.engine_name, version.id, content.folder)
    if content.is_3d:
        request.is_3d_lora_weight = True
    return request


class VllmCommand:
    """vLLM's own `serve` command, as its command line would run it."""

    LORA_FLAGS = ("enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank")
    SHARE_FLAG = "gpu_memory_utilization"

    def __init__(self) -> None:
        _prepare_environment()
        self._parser, self._serve = _parser()
        self.given_share: float | None = None  # --gpu-memory-utilization, where the arguments that were parsed have it

    def parse(self, argv: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
        """The arguments as vLLM reads them, and what they say of the LoRA flags: None where they leave the default.

        Ends the process as vLLM does when they are wrong, or ask for help.
        """
        flags = (*self.LORA_FLAGS, self.SHARE_FLAG)
        defaults = {name: self._serve.get_default(name) for name in flags}
        self._serve.set_defaults(**dict.fromkeys(flags))
        args = self._parser.parse_args(["serve", *argv])
        self._serve.set_defaults(**defaults)
        given = {name: getattr(args, name) for name in flags}
        for name, value in given.items():
            setattr(args, name, defaults[name] if value is None else value)
        self.given_share = given.pop(self.SHARE_FLAG)
        _configure_logging(args)
        return args, given

    def add(self, args: Namespace, flags: Sequence[str]) -> None:
        """Adds LoRA flags to arguments, as vLLM reads them."""
        added = self._parser.parse_args(["serve", *flags])
        for name in ("lora_modules", *self.LORA_FLAGS):
            if f"--{name.replace('_', '-')}" in flags:
                setattr(args, name, getattr(added, name))

    def room(self, args: Namespace, base: BaseModel) -> Room:
        """The memory there is for adapters, before the engine takes its share."""
        memory = psutil.virtual_memory()
        # Where the driver does not say, slots are counted by adapters alone.
        device_bytes = self.gpu_bytes() if _has_gpu() else memory.total
        workers = args.tensor_parallel_size * args.pipeline_parallel_size * (args.data_parallel_size_local or 1)
        return Room(
            device_bytes,
            min(memory.available, _left_of_container(memory.available)),
            slot_bytes(base, rank=1),
            workers=workers,
        )

    def gpu_bytes(self) -> int | None:
        """The memory of one GPU, in all; None where the engine runs on none, or the driver does not say."""
        from vllm.platforms import current_platform

        try:
            return current_platform.get_device_total_memory() if _has_gpu() else None
        except Exception:
            return None

    @property
    def usual_share(self) -> float:
        """What `--gpu-memory-utilization` is when nobody sets it."""
        return self._serve.get_default(self.SHARE_FLAG)

    def api_servers(self, args: Namespace) -> int:
        """The API-server processes beside the engines of this host, as `ServeSubcommand.cmd` counts them."""
        local = args.data_parallel_size_local
        if args.headless or local == 0:
            return 0
        if getattr(args, "data_parallel_multi_port_external_lb", False):
            return local or 1  # one for each engine, and each sees the same first GPU
        count = args.api_server_count
        if count is None:
            if args.data_parallel_external_lb or args.data_parallel_rank is not None:
                count = 1
            elif args.data_parallel_hybrid_lb or args.data_parallel_start_rank is not None:
                count = local or 1
            else:
                count = args.data_parallel_size
        return min(count, 1) if getattr(args, "enable_elastic_ep", False) else count

    def without_plugins(self, args: Namespace) -> str | None:
        """Why these arguments would start a server that loads no endpoint plugin, or None."""
        if getattr(args, "grpc", False):
            return "--grpc starts a server without endpoint plugins, so without routing; leave it out"
        if _use_rust_front_end():
            return "VLLM_USE_RUST_FRONTEND starts a server without endpoint plugins, so without routing; unset it"
        return None

    def run(self, args: Namespace) -> None:
        """Serves until the process is told to stop."""
        from vllm.entrypoints.cli.serve import ServeSubcommand

        command = ServeSubcommand()
        command.validate(args)
        command.cmd(args)


def release() -> str:
    """The installed release of vLLM, without the build's own suffix."""
    import vllm

    return vllm.__version__.partition("+")[0]


def _left_of_container(machine_bytes: int) -> int:
    """Bytes of memory that the container leaves, of which the machine's own figures know nothing."""
    try:
        from vllm.utils.cpu_resource_utils import get_cgroup_memory_limit, get_cgroup_memory_usage
    except ImportError:  # before 0.27
        return machine_bytes
    limit, usage = get_cgroup_memory_limit(), get_cgroup_memory_usage()
    return machine_bytes if limit is None else max(limit - (usage or 0), 0)


def _has_gpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cuda_alike()


def _prepare_environment() -> None:
    """What vLLM's command line does first: worker processes are spawned, not forked."""
    try:
        from vllm.entrypoints.common.startup import cli_env_setup  # 0.33
    except ImportError:
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    cli_env_setup()


def _configure_logging(args: Namespace) -> None:
    import vllm.logger

    if configure := getattr(vllm.logger, "configure_logging_from_args", None):
        configure(args)


def _parser() -> tuple[Any, Any]:
    """vLLM's parser and the one of its subcommand `serve`."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    subparsers = parser.add_subparsers(required=False, dest="subparser")
    return parser, ServeSubcommand().subparser_init(subparsers)


def _use_rust_front_end() -> bool:
    import vllm.envs

    return bool(getattr(vllm.envs, "VLLM_USE_RUST_FRONTEND", False))
