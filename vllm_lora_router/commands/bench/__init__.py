"""`vllm-lora-router bench`: what it costs on this machine."""

import argparse

from vllm_lora_router.commands.bench import adapters, classify, serve


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("bench", help="measure what it costs on this machine")
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    for kind in (serve, adapters, classify):
        kind.add(kinds)
