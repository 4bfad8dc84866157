"""`python -m vllm_lora_router.serve`: run `vllm serve` with routing."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vllm_lora_router.adapters.runtime.factory import run_directory_parent
from vllm_lora_router.adapters.runtime.resolver import Resolver
from vllm_lora_router.config import CONFIG_VARIABLE, DEFAULT_FILE, ConfigError, configured_file, load
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.config.warnings import config_warnings
from vllm_lora_router.coordination.run_directory import run_folder, server_name
from vllm_lora_router.coordination.sighup import install_sighup_handler
from vllm_lora_router.observability.audit_destination import (
    AuditDestination,
    AuditDestinationError,
    prepare_destination,
)
from vllm_lora_router.server.preflight import preflight
from vllm_lora_router.server.resource_checks import check_classifier_memory, check_run_directory, resource_notices
from vllm_lora_router.server.vllm.command import VllmCommand, base_model, share_vllm_log_handlers
from vllm_lora_router.server.vllm.gpu_utilization import reserve_classifier_memory
from vllm_lora_router.server.vllm.lora_flags import DerivedFlags, FlagError, UserFlags, derive_flags
from vllm_lora_router.server.vllm.parent_watch import watch_parent
from vllm_lora_router.server.vllm.plugin_selection import PluginError, check_plugin, plugin_names

logger = logging.getLogger("vllm_lora_router.serve")


def main(argv: Sequence[str] | None = None) -> None:
    """Check the configuration and the adapters, derive vLLM's LoRA flags, and run `vllm serve`."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_lora_router.serve",
        usage="%(prog)s BASE_MODEL [--router-config FILE] [any flag of `vllm serve`]",
        description="Run vLLM's OpenAI server and route requests for model=MoM (or auto) to LoRA adapters.",
        epilog="--enable-lora, --max-loras, --max-cpu-loras and --max-lora-rank are derived from the configuration and "
        "the adapters unless you set them. On a GPU, --gpu-memory-utilization is lowered by the memory that the "
        "classifiers need unless you set it. The help of `vllm serve` follows.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--router-config",
        metavar="FILE",
        help=f"Routing configuration (default: ${CONFIG_VARIABLE}, or {DEFAULT_FILE} if that file exists).",
    )
    options, vllm_arguments = parser.parse_known_args(argv)
    if any(argument in ("-h", "--help") or argument.startswith("--help=") for argument in vllm_arguments):
        parser.print_help()
        print(flush=True)
    else:
        os.environ[CONFIG_VARIABLE] = str(_config_file(options.router_config))
        try:
            check_plugin()
        except PluginError as error:
            _exit([str(error)])
    os.environ["VLLM_PLUGINS"] = ",".join(plugin_names())
    _serve(vllm_arguments)


def _config_file(option: str | None) -> Path:
    file = Path(option) if option else configured_file()
    if file == DEFAULT_FILE and not file.is_file():
        _exit([f"the routing configuration is missing: set --router-config, or create {DEFAULT_FILE}"])
    # The path is not resolved, so that a symbolic link can be swapped while the server runs.
    return file.expanduser().absolute()


def _serve(argv: list[str]) -> None:
    command = VllmCommand()
    args, user_flags = command.parse(argv)
    if conflict := command.plugin_conflict(args):
        _exit([conflict])
    share_vllm_log_handlers()
    model = base_model(args)
    paths = {module.name: module.path for module in args.lora_modules or ()}
    served_names = args.served_model_name or [model.name]
    try:
        loaded = load(Path(os.environ[CONFIG_VARIABLE]), adapters=paths)
        base = served_base(loaded, served_names)
    except ConfigError as error:
        _exit([str(problem) for problem in error.problems])
    checks = preflight(loaded, base, model, served_names, paths)
    problems = list(checks.problems)
    derived = DerivedFlags()
    memory = command.available_memory(args, model)
    try:
        derived = derive_flags(checks.adapters, UserFlags(**user_flags), memory, _adapters_in_sources(loaded))
    except FlagError as error:
        problems += str(error).splitlines()
    audit = AuditDestination()
    try:
        audit = prepare_destination(loaded)
    except AuditDestinationError as error:
        problems.append(str(error))
    if processes := command.api_servers(args):
        folders = [adapter.folder for adapter in checks.adapters]
        problems += check_run_directory(loaded, folders, processes=processes, one_node=command.is_on_one_node(args))
    if not checks.problems:
        problems += check_classifier_memory(loaded, processes=processes, available_bytes=memory.host_bytes)
    if problems:
        _exit(problems)
    for notice in (*config_warnings(loaded, base), *checks.notices, *resource_notices(audit)):
        logger.log(notice.level, "%s", notice.text)
    for explanation in derived.explanations:
        logger.info("%s", explanation)
    if derived.flags:
        command.add_flags(args, derived.flags)
    logger.info("%s", command.set_shutdown_timeout(args, loaded.config.router.drain_s))
    reserve_classifier_memory(command, args, loaded)
    # With several API-server processes, this process only starts them, and it is the one that users send SIGHUP to.
    install_sighup_handler(lambda: run_folder(server_name(args.port), run_directory_parent(loaded)))
    command.run(args)


def _adapters_in_sources(loaded: LoadedConfig) -> int | None:
    """Return the number of adapters in the configured sources; None: no sources are configured."""
    sources = Resolver.from_config(loaded, {}).sources if loaded.config.router.adapters.sources else ()
    return sum(len(source.names()) for source in sources) if sources else None


def _exit(problems: Sequence[str]) -> NoReturn:
    print("The server was not started:", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    # multiprocessing imports the main module first in each process that it starts: vLLM loads plugins only later.
    watch_parent()
