"""`vllm-lora-router distill`: a static encoder of any sentence encoder, for rules that take microseconds."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("distill", help="make a static encoder, which is far faster, of a sentence encoder")
    parser.add_argument("model", help="a sentence-transformers encoder: a folder or a hub id")
    parser.add_argument("folder", type=Path, help="where the static encoder is written; new or empty")
    parser.add_argument("--dimensions", type=int, default=256, help="of its vectors; default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when the static encoder is written, 1 when it cannot be made."""
    from vllm_lora_router.tools.fit.distill import DistillError, distill

    console = Console()
    try:
        with console.status("putting every token through the encoder"):
            made = distill(args.model, args.folder, dimensions=args.dimensions)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 1
    console.print(
        Text(
            f"{args.folder}: {made.tokens} tokens in {made.dimensions} dimensions, "
            f"with {made.kept:.1%} of the encoder's variance; in config.yaml:"
        ),
        soft_wrap=True,
    )
    print(f"classifier:\n  embedding_model: {{model_id: {json.dumps(str(args.folder), ensure_ascii=False)}}}")
    return 0
