"""`python -m vllm_lora_router.serve`: `vllm serve` with routing in it."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import distributions, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.filesize import decimal

from vllm_lora_router.adapters.runtime.factory import run_parent
from vllm_lora_router.adapters.runtime.resolver import Catalogue
from vllm_lora_router.config import CONFIG_VARIABLE, DEFAULT_FILE, ConfigError, configured_file, load
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.config.warnings import notices
from vllm_lora_router.coordination.run_directory import run_folder, server_name
from vllm_lora_router.coordination.sighup import note_hangups
from vllm_lora_router.observability.audit_destination import RecordError, destination
from vllm_lora_router.server.preflight import preflight
from vllm_lora_router.server.vllm.lora_flags import Derived, FlagError, Given, derive

if TYPE_CHECKING:
    from vllm_lora_router.server.vllm.engine import VllmCommand

ENDPOINT_GROUP = "vllm.endpoint_plugins"
PLUGIN = "lora_router"

logger = logging.getLogger("vllm_lora_router.serve")


def main(argv: Sequence[str] | None = None) -> None:
    """Checks everything that can be checked, derives vLLM's LoRA flags, and hands over to `vllm serve`."""
    options = argparse.ArgumentParser(
        prog="python -m vllm_lora_router.serve",
        usage="%(prog)s BASE_MODEL [--router-config CONFIG] [every flag of `vllm serve`]",
        description="vLLM's OpenAI server, with requests for model=MoM (or auto) routed to the adapter that fits them.",
        epilog="--enable-lora, --lora-modules, --max-loras, --max-cpu-loras and --max-lora-rank are derived from the "
        "configuration and the adapters' own files unless you set them. What follows is vLLM's own help.",
        add_help=False,
        allow_abbrev=False,
    )
    options.add_argument(
        "--router-config",
        metavar="CONFIG",
        help=f"the routing configuration (default: ${CONFIG_VARIABLE}, then {DEFAULT_FILE} if it exists)",
    )
    ours, rest = options.parse_known_args(argv)
    if any(argument in ("-h", "--help") or argument.startswith("--help=") for argument in rest):
        options.print_help()
        print(flush=True)
    else:
        os.environ[CONFIG_VARIABLE] = str(_config_file(ours.router_config))
        _check_plugin()
    os.environ["VLLM_PLUGINS"] = ",".join(_plugins())
    _serve(rest)


def _config_file(given: str | None) -> Path:
    file = Path(given) if given else configured_file()
    if file == DEFAULT_FILE and not file.is_file():
        _refuse([f"no configuration: pass --router-config config.yaml, or put it at {DEFAULT_FILE}"])
    # Not resolved: a file that is swapped by its link must be found again.
    return file.expanduser().absolute()


def _check_plugin() -> None:
    """vLLM logs a plugin that it cannot import and serves without it; we do not start at all."""
    found = list(entry_points(group=ENDPOINT_GROUP, name=PLUGIN))
    if not found:
        _refuse([f"no entry point {PLUGIN!r} in {ENDPOINT_GROUP}: install the package (pip install vllm-lora-router)"])
    try:
        found[0].load()()
    except Exception as error:
        _refuse([f"the plugin {found[0].value} cannot be loaded: {type(error).__name__}: {error}"])


def _plugins() -> list[str]:
    """What would have been loaded without us, and us: naming one plugin turns off all that are not named."""
    if (named := os.environ.get("VLLM_PLUGINS")) is not None:
        names = [name for name in named.split(",") if name]
    else:
        entries = [entry for distribution in distributions() for entry in distribution.entry_points]
        names = [entry.name for entry in entries if entry.group.startswith("vllm.") and entry.group != ENDPOINT_GROUP]
    return list(dict.fromkeys([*names, PLUGIN]))


def _serve(argv: list[str]) -> None:
    from vllm_lora_router.server.vllm.engine import VllmCommand

    vllm = VllmCommand()
    args, given = vllm.parse(argv)
    if refused := vllm.without_plugins(args):
        _refuse([refused])
    from vllm_lora_router.server.vllm.plugin import base_model, log_like_vllm

    log_like_vllm()
    paths = {module.name: module.path for module in args.lora_modules or ()}
    served_names = args.served_model_name or [base_model(args).name]
    try:
        loaded = load(Path(os.environ[CONFIG_VARIABLE]), adapters=paths)
        base = served_base(loaded, served_names)
    except ConfigError as error:
        _refuse([str(problem) for problem in error.problems])
    found = preflight(loaded, base, base_model(args), served_names, paths)
    problems = list(found.problems)
    derived = Derived()
    try:
        derived = derive(found.adapters, Given(**given), vllm.room(args, base_model(args)), _expected(loaded))
    except FlagError as error:
        problems += str(error).splitlines()
    try:
        destination(loaded)
    except RecordError as error:
        problems.append(str(error))
    if problems:
        _refuse(problems)
    for notice in (*notices(loaded, base), *found.notices):
        logger.log(notice.level, "%s", notice.text)
    for line in derived.explained:
        logger.info("%s", line)
    if derived.flags:
        vllm.add(args, derived.flags)
    _leave_room(vllm, args, loaded)
    # With several API servers this process only starts them, and is the one that people send a signal to.
    note_hangups(lambda: run_folder(server_name(args.port), run_parent(loaded)))
    vllm.run(args)


def _leave_room(vllm: "VllmCommand", args: argparse.Namespace, loaded: Loaded) -> None:
    """Keeps the classifiers' memory out of the engine's share of a GPU, unless the user has set that share."""
    total_bytes = vllm.gpu_bytes()
    # With --kv-cache-memory-bytes the share says nothing.
    if total_bytes is None or args.kv_cache_memory_bytes:
        return
    from vllm_lora_router.classifiers.models.gpu_memory import needed_bytes, utilization

    servers, needed, share = vllm.api_servers(args), needed_bytes(loaded), args.gpu_memory_utilization
    most = utilization(vllm.usual_share, total_bytes, needed, servers)
    if most is None or share <= most:
        return
    total, each = decimal(total_bytes), decimal(needed)
    each += f" in each of {servers} API-server processes" if servers > 1 else ""
    if not most:
        fewer = " or a smaller --api-server-count" if servers > 1 else ""
        logger.warning(
            "the classifiers need about %s, and the GPU has %s for them and the engine; set device: cpu%s",
            each,
            total,
            fewer,
        )
    elif vllm.given_share is None:
        args.gpu_memory_utilization = most
        logger.info(
            "--gpu-memory-utilization %.2f instead of %g: of the GPU's %s the classifiers need about %s",
            most,
            share,
            total,
            each,
        )
    else:
        logger.warning(
            "--gpu-memory-utilization %g may leave too little of the GPU's %s: the classifiers need about %s; set it "
            "to %.2f or lower, or leave it out",
            share,
            total,
            each,
            most,
        )


def _expected(loaded: Loaded) -> int | None:
    """How many adapters lie in the sources now; None where none can come at run time."""
    sources = Catalogue.of(loaded, {}).sources if loaded.config.router.adapters.sources else ()
    return sum(len(source.names()) for source in sources) if sources else None


def _refuse(problems: Sequence[str]) -> NoReturn:
    print("The server was not started:", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
