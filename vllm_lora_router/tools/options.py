"""Options and checks that several subcommands share."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from vllm_lora_router.config import ConfigError, LoadedConfig, configured_file, load
from vllm_lora_router.config.served_base import ServedBase, served_base


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add the configuration file as an optional positional argument."""
    parser.add_argument(
        "config", nargs="?", type=Path, default=configured_file(), help="Configuration file (default: %(default)s)."
    )


def add_base_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server's command line that name the base model and its adapters."""
    parser.add_argument(
        "--model",
        metavar="BASE_MODEL",
        help="Base model that the server will run: a folder or a Hub id (default: the base in the configuration).",
    )
    parser.add_argument(
        "--served-model-name",
        metavar="NAME",
        help="Name under which the server will serve the base model (default: the value of --model).",
    )
    parser.add_argument(
        "--lora-modules",
        metavar="NAME=PATH",
        nargs="+",
        default=[],
        help="Adapters that the server's command line will declare (default: none).",
    )


def share(text: str) -> float:
    """Parse a number above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def at_least_one(text: str) -> int:
    """Parse an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def adapters_of(args: argparse.Namespace) -> dict[str, str]:
    """Return the adapters of `--lora-modules`, name -> path."""
    return {name: path for name, _, path in (module.partition("=") for module in args.lora_modules)}


def load_or_report(file: Path, args: argparse.Namespace) -> tuple[LoadedConfig, ServedBase] | None:
    """Load a configuration and its base; print all its problems to stderr and return None if it is invalid."""
    name = args.served_model_name or args.model
    try:
        loaded = load(file, adapters=adapters_of(args))
        return loaded, served_base(loaded, [name] if name else [])
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        count = len(error.problems)
        print(f"{count} problem{'s' if count > 1 else ''} in {file}", file=sys.stderr)
        return None


def report_missing(command: str, extra: str, *packages: str) -> bool:
    """Return whether a command lacks a package that it imports, after printing the extra that installs it.

    Args:
        command: Name of the subcommand.
        extra: Extra of this package that requires the packages.
        packages: Import names.
    """
    distributions = {"sklearn": "scikit-learn"}
    missing = [distributions.get(package, package) for package in packages if find_spec(package) is None]
    if missing:
        print(f"{command} needs {' and '.join(missing)}: pip install 'vllm-lora-router[{extra}]'", file=sys.stderr)
    return bool(missing)
