"""vLLM's engine and its registry of adapters, as routing sees them, and its `serve` command."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels


class VllmEngine:
    """The registry where vLLM looks up the `model` of a request."""

    def __init__(self, models: "OpenAIServingModels") -> None:
        self._models = models
        self.served_names: Sequence[str] = [path.name for path in models.base_model_paths]

    @property
    def adapters(self) -> Mapping[str, str]:
        """The adapters that the server has now, name -> folder."""
        return {name: request.lora_path for name, request in self._models.lora_requests.items()}

    def can_serve(self, adapter: str) -> bool:
        return adapter in self._models.lora_requests


class VllmCommand:
    """vLLM's own `serve` command, as its command line would run it."""

    LORA_FLAGS = ("enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank")

    def __init__(self) -> None:
        _prepare_environment()
        self._parser, self._serve = _parser()

    def parse(self, argv: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
        """The arguments as vLLM reads them, and what they say of the LoRA flags: None where they leave the default.

        Ends the process as vLLM does when they are wrong, or ask for help.
        """
        defaults = {name: self._serve.get_default(name) for name in self.LORA_FLAGS}
        self._serve.set_defaults(**dict.fromkeys(self.LORA_FLAGS))
        args = self._parser.parse_args(["serve", *argv])
        self._serve.set_defaults(**defaults)
        given = {name: getattr(args, name) for name in self.LORA_FLAGS}
        for name, value in given.items():
            setattr(args, name, defaults[name] if value is None else value)
        _configure_logging(args)
        return args, given

    def add(self, args: Namespace, flags: Sequence[str]) -> None:
        """Adds LoRA flags to arguments, as vLLM reads them."""
        added = self._parser.parse_args(["serve", *flags])
        for name in ("lora_modules", *self.LORA_FLAGS):
            if f"--{name.replace('_', '-')}" in flags:
                setattr(args, name, getattr(added, name))

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
