"""`vllm-lora-router schema`: print the JSON schema or the reference page of the configuration file."""

import argparse
import json

from vllm_lora_router.config.json_schema import json_schema
from vllm_lora_router.config.reference import markdown


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand to the parser."""
    parser = subparsers.add_parser(
        "schema",
        help="print the JSON schema of the configuration file",
        description="Print the JSON schema (draft 2020-12) of the configuration file. Editors use it to complete and "
        "check keys: write it to schema.json and begin the configuration with "
        "`# yaml-language-server: $schema=schema.json`.",
    )
    parser.add_argument("--markdown", action="store_true", help="Print the reference page, config/README.md, instead.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the schema or the page. The exit status is 0."""
    print(markdown() if args.markdown else json.dumps(json_schema(), indent=2), end="" if args.markdown else "\n")
    return 0
