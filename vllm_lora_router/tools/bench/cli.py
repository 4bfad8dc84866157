"""The command `vllm-lora-router bench`: measure the cost of routing on this machine."""

import argparse

from vllm_lora_router.tools.bench import adapters_cli, classify_cli, serve_cli


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("bench", help="measure the cost of routing on this machine")
    kinds = parser.add_subparsers(metavar="BENCHMARK", required=True)
    for kind in (serve_cli, adapters_cli, classify_cli):
        kind.add(kinds)
