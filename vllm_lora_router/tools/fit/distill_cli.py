"""`vllm-lora-router distill`: make a static encoder from a sentence encoder."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `distill` subcommand."""
    parser = subparsers.add_parser(
        "distill", help="make a static encoder, which takes microseconds, from a sentence encoder"
    )
    parser.add_argument("model", help="Encoder of sentence-transformers: a folder or a Hub id.")
    parser.add_argument("folder", type=Path, help="Folder to write the static encoder to; it must be new or empty.")
    parser.add_argument(
        "--dimensions", type=int, default=256, help="Dimensions of the static encoder's vectors (default: %(default)s)."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Return 0 if the static encoder was written, 1 if it cannot be made."""
    from vllm_lora_router.tools.fit.distill import DistillError, distill

    console = Console()
    try:
        with console.status("encoding all tokens"):
            result = distill(args.model, args.folder, dimensions=args.dimensions)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 1
    console.print(
        Text(
            f"{args.folder}: {result.tokens} tokens with {result.dimensions} dimensions, which keep "
            f"{result.variance_kept:.1%} of the encoder's variance; add to config.yaml:"
        ),
        soft_wrap=True,
    )
    print(f"classifier:\n  embedding_model: {{model_id: {json.dumps(str(args.folder), ensure_ascii=False)}}}")
    return 0
