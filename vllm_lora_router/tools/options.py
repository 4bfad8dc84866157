"""Options that several subcommands share, and the configuration that they lead to."""

import argparse
import sys
from pathlib import Path

from vllm_lora_router.config import ConfigError, Loaded, load
from vllm_lora_router.config.served_base import ServedBase, served_base


def add_base_options(parser: argparse.ArgumentParser) -> None:
    """What the server's command line would say of the base and its adapters."""
    parser.add_argument(
        "--model", metavar="BASE_MODEL", help="the base model that will be served: a folder or a hub id"
    )
    parser.add_argument("--served-model-name", metavar="NAME", help="the name that it will be served under")
    parser.add_argument(
        "--lora-modules", metavar="NAME=PATH", nargs="+", default=[], help="adapters that the command line will declare"
    )


def share(text: str) -> float:
    """A number above 0 and at most 1, of an option."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def at_least_one(text: str) -> int:
    """A whole number from 1 up, of an option."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def adapters_of(args: argparse.Namespace) -> dict[str, str]:
    """The adapters of `--lora-modules`, name -> path."""
    return {name: path for name, _, path in (module.partition("=") for module in args.lora_modules)}


def load_or_report(file: Path, args: argparse.Namespace) -> tuple[Loaded, ServedBase] | None:
    """The configuration and its base; None after printing everything that is wrong with it to stderr."""
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
