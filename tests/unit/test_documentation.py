"""The documentation pages name only commands, options, keys, metrics, headers and files that exist."""

import argparse
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import CollectorRegistry

from vllm_lora_router import cli, serve
from vllm_lora_router.config import Config, load
from vllm_lora_router.observability.metrics import Metrics
from vllm_lora_router.observability.response_headers import HEADER_NAMES
from vllm_lora_router.server.vllm import TESTED_RELEASES
from vllm_lora_router.types import Reason

ROOT = Path(__file__).parents[2]
README, CONFIGURATION, OPERATIONS, TOOLS, CONTRIBUTING, SECURITY = (
    "README.md",
    "config/README.md",
    "launch/README.md",
    "vllm_lora_router/tools/README.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
)
PAGES = [README, CONFIGURATION, OPERATIONS, TOOLS, CONTRIBUTING, SECURITY]
each_page = pytest.mark.parametrize("page", PAGES)

OPTION = r"--[a-z][a-z0-9-]*"
# Options of vLLM, pip and pytest that the pages may name. tests/server/test_vllm_seam.py checks those of vLLM.
VLLM_OPTIONS = {
    *("--api-key", "--api-server-count", "--chat-template", "--data-parallel-size", "--enable-auto-tool-choice"),
    *("--enable-lora", "--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-scale-out"),
    *("--enforce-eager", "--gpu-memory-utilization", "--grpc", "--headless", "--kv-cache-memory-bytes"),
    *("--lora-modules", "--max-cpu-loras", "--max-lora-rank", "--max-loras", "--max-model-len", "--max-num-seqs"),
    *("--middleware", "--otlp-traces-endpoint", "--port", "--served-model-name", "--shutdown-timeout"),
    *("--tool-call-parser",),
}
OTHER_OPTIONS = {
    *("--keep",),  # of launch/demo.sh
    *("--full",),  # of tests/server
    *("--help", "--no-compile", "--durations", "--numprocesses"),
}
# Top-level keys of YAML that is not a configuration of the router.
OTHER_YAML = {"apiVersion", "groups", "services", "scrape_configs"}

SMALLEST: dict[str, Any] = {
    "model_config": {"base": {}},
    "default_model": "base",
    "categories": [{"name": "general", "model_scores": [{"model": "base"}]}],
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def parsers() -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """Return the parser of each command, by the words that call it."""
    root = argparse.ArgumentParser(prog="vllm-lora-router")
    root.add_argument("--version", action="store_true")
    subparsers = root.add_subparsers()
    for command in cli.COMMANDS:
        command.add(subparsers)
    return dict(_below((), root))


def _below(
    words: tuple[str, ...], parser: argparse.ArgumentParser
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield from _below((*words, name), subparser)


PARSERS = parsers()


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def commands(page: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each `vllm-lora-router COMMAND ...` of code spans and blocks: the command's words and the rest of it."""
    lines = re.sub(r"\\\n\s*", "", text_of(page)).splitlines()
    fenced = False
    for line in lines:
        if line.startswith("```"):
            fenced = not fenced
            continue
        for part in [line] if fenced or line.startswith("    ") else re.findall(r"`([^`]+)`", line):
            if match := re.match(r"\s*(?:\$ )?(?:\S+/)?vllm-lora-router (.*)", part):
                words = match[1].split("#")[0].split()
                known = max((known for known in PARSERS if tuple(words[: len(known)]) == known), key=len)
                yield known, " ".join(words[len(known) :])


@each_page
def test_every_command_and_its_options_exist(page: str) -> None:
    wrong: list[str] = []
    for words, rest in commands(page):
        command = " ".join(["vllm-lora-router", *words])
        first = rest.partition(" ")[0]
        has_subcommands = any(known[:-1] == words for known in PARSERS if known)
        if has_subcommands and first and not first.startswith("-") and not first.isupper():
            wrong.append(f"{command} {first}: no such command")
        router_options = rest.split(" -- ")[0]  # options of vLLM follow after `--`
        named = re.findall(rf"(?<!\S){OPTION}", router_options)
        wrong += [f"{command} {option}: no such option" for option in named if option not in options_of(PARSERS[words])]
    assert not wrong, "\n".join(wrong)


def declared_options() -> set[str]:
    """Return the options of all programs in the package, also of those that are run as modules."""
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "vllm_lora_router").rglob("*.py"))
    return set(re.findall(rf'add_argument\(\s*"({OPTION})"', sources))


@each_page
def test_every_option_in_the_text_exists(page: str) -> None:
    router_options = {option for parser in PARSERS.values() for option in options_of(parser)} | declared_options()
    named = {
        option for span in re.findall(r"`([^`\n]+)`", prose(page)) for option in re.findall(rf"(?<!\S){OPTION}", span)
    }
    assert named - router_options - VLLM_OPTIONS - OTHER_OPTIONS == set()


def test_every_command_has_a_page() -> None:
    everything = "\n".join(map(text_of, PAGES))
    missing = [words for words in PARSERS if words and f"vllm-lora-router {' '.join(words)}" not in everything]
    assert missing == []


@each_page
def test_every_yaml_block_is_accepted(page: str, tmp_path: Path) -> None:
    for place, block in enumerate(blocks(page, "ya?ml")):
        documents = [document for document in yaml.safe_load_all(block) if document is not None]
        if any(OTHER_YAML & set(document) for document in documents):
            continue
        (content,) = documents
        if {"model_config", "categories", "default_model"} <= set(content):
            file = tmp_path / f"{place}.yaml"
            file.write_text(block)
            load(file)
        else:  # a part of a configuration
            Config.model_validate({**SMALLEST, **content})


def test_the_first_configuration_of_the_readme_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(blocks(README, "yaml")[0])
    assert [category.name for category in load(file).config.categories] == ["legal", "support"]


def metric_names() -> dict[str, set[str]]:
    """Return each metric's name, and the names of its samples."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}
    registry = CollectorRegistry()
    Metrics(registry)
    return {
        family.name: {family.name, *(family.name + suffix for suffix in suffixes.get(family.type, ()))}
        for family in registry.collect()
    }


def metrics_named(page: str) -> set[str]:
    return set(re.findall(r"(?<![\w/.-])lora_router_[a-z_]*[a-z](?![\w./*])", text_of(page)))


@each_page
def test_every_metric_exists(page: str) -> None:
    assert metrics_named(page) - set().union(*metric_names().values()) == set()


def test_every_metric_is_described() -> None:
    named = metrics_named(OPERATIONS)
    assert [name for name, samples in metric_names().items() if not named & samples] == []


@each_page
def test_every_relative_link_resolves(page: str) -> None:
    wrong: list[str] = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    documented: set[str] = set()
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ +(.*?) *#*$", text, re.MULTILINE):
        remaining = "".join(
            char for char in heading.lower() if char in "-_ " or unicodedata.category(char)[0] in ("L", "N", "M")
        )
        slug = remaining.replace(" ", "-")
        number = 1
        while (name := slug if number == 1 else f"{slug}-{number - 1}") in documented:
            number += 1
        documented.add(name)
    return documented


@each_page
def test_every_file_of_the_repository_exists(page: str) -> None:
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    words = [word for span in spans for word in span.split()]
    paths = [
        word.partition("::")[0] for word in words if re.match(r"(tests|launch|vllm_lora_router|\.ci)/[\w./-]+$", word)
    ]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@each_page
def test_every_module_that_is_run_exists(page: str) -> None:
    modules = re.findall(r"python -m (vllm_lora_router[\w.]*\w)", text_of(page))
    files = [ROOT / module.replace(".", "/") for module in modules]
    assert [str(file) for file in files if not (file.with_suffix(".py").exists() or file.is_dir())] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / README).read_bytes()) <= 12_288


def test_the_readme_names_every_header_reason_and_tested_release() -> None:
    text = text_of(README)
    assert [name for name in HEADER_NAMES if f"`{name}`" not in text] == []
    # `named` never reaches a response.
    assert [reason for reason in get_args(Reason) if reason != "named" and f"`{reason}`" not in text] == []
    assert [release for release in TESTED_RELEASES if release not in text] == []


def test_the_reference_names_every_key_at_the_top() -> None:
    text = text_of(CONFIGURATION)
    assert [name for key, field in Config.model_fields.items() if (name := field.alias or key) not in text] == []


def test_the_option_of_serve_is_named() -> None:
    assert "--router-config" in Path(serve.__file__).read_text() and "--router-config" in text_of(README)
