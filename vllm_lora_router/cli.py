"""`vllm-lora-router`: the command line for tasks other than serving."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import vllm_lora_router
from vllm_lora_router.tools import classify, doctor, explain, schema, validate
from vllm_lora_router.tools.audit import ab_cli
from vllm_lora_router.tools.audit import cli as audit_cli
from vllm_lora_router.tools.bench import cli as bench_cli
from vllm_lora_router.tools.calibrate import cli as calibrate_cli
from vllm_lora_router.tools.evaluate import cli as evaluate_cli
from vllm_lora_router.tools.fit import cli as fit_cli
from vllm_lora_router.tools.fit import distill_cli
from vllm_lora_router.tools.prove import cli as prove_cli

COMMANDS = (
    validate,
    explain,
    schema,
    classify,
    doctor,
    audit_cli,
    ab_cli,
    fit_cli,
    evaluate_cli,
    calibrate_cli,
    prove_cli,
    distill_cli,
    bench_cli,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    parser = argparse.ArgumentParser(prog="vllm-lora-router", description=vllm_lora_router.__doc__)
    parser.add_argument("--version", action="version", version=vllm_lora_router.__version__)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(subparsers)
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        status = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
