"""`vllm-lora-router bench`: what it costs on this machine."""

import argparse

from vllm_lora_router.tools.bench import adapters_cli, classify_cli, serve_cli


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("bench", help="measure what it costs on this machine")
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    for kind in (serve_cli, adapters_cli, classify_cli):
        kind.add(kinds)
