"""The structure of the package: which folder may import which, without cycles."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "vllm_lora_router"
ROOT = Path(__file__).parents[2] / PACKAGE

# Part of the package -> the other parts that it may import. A part is a folder or a module directly below the package.
BASICS = {"types", "text", "ids", "linear_regex", "file_access"}
COMMON = {*BASICS, "config"}
SERVER = {*COMMON, "routing", "classifiers", "adapters", "coordination", "observability", "protocols"}
ALLOWED = {
    "text": set(),
    "ids": set(),
    "file_access": set(),
    "linear_regex": set(),
    "types": {"text", "ids"},
    "config": {"types", "text", "linear_regex"},
    "protocols": COMMON,
    "classifiers": COMMON,
    "routing": {*COMMON, "classifiers"},
    "coordination": COMMON,
    "adapters": {*COMMON, "coordination"},
    "observability": {"config", "types", "text"},
    "server": SERVER,
    "serve": {*SERVER, "server"},
    "tools": {*SERVER, "server"},
    "cli": {*COMMON, "tools"},
}
VLLM_MODULES = (f"{PACKAGE}.serve", f"{PACKAGE}.server.vllm")
HEAVY = ("torch", "transformers", "vllm")


@dataclass(frozen=True)
class Import:
    """An import statement of one module, also inside a function or under TYPE_CHECKING."""

    importer: str
    imported: str  # a module of the package where the imported name is one, else the module that defines the name
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Yield every import in a module's source, relative ones resolved."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{target}.{alias.name}"
                yield Import(module, submodule if submodule in MODULES else target, node.lineno)


IMPORTS = [edge for module, file in MODULES.items() for edge in imports_of(module, file.read_text())]
INTERNAL = [edge for edge in IMPORTS if edge.imported == PACKAGE or edge.imported.startswith(f"{PACKAGE}.")]


def part(module: str) -> str:
    """Return the folder or module directly below the package, or an empty string for the package itself."""
    return module.split(".")[1] if "." in module else ""


def test_every_part_of_the_package_has_a_place_in_the_structure() -> None:
    assert {part(module) for module in MODULES} - {""} <= ALLOWED.keys()


def test_imports_follow_the_structure() -> None:
    wrong = [
        str(edge)
        for edge in INTERNAL
        if (target := part(edge.imported))
        and target != part(edge.importer)
        and target not in ALLOWED.get(part(edge.importer), set())
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for edge in INTERNAL:
        graph[edge.importer].add(edge.imported)
    wrong = [str(edge) for edge in INTERNAL if edge.importer in reachable(graph, edge.imported)]
    assert not wrong, "\n".join(wrong)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return the modules that a module imports, directly or not, and the module itself."""
    seen: set[str] = set()
    remaining = [start]
    while remaining:
        module = remaining.pop()
        if module not in seen:
            seen.add(module)
            remaining += graph.get(module, ())
    return seen


def test_every_imported_module_exists() -> None:
    assert [str(edge) for edge in INTERNAL if edge.imported not in MODULES] == []


def test_vllm_is_imported_only_where_it_is_integrated() -> None:
    wrong = [
        str(edge)
        for edge in IMPORTS
        if edge.imported.split(".")[0] == "vllm"
        and not any(edge.importer == place or edge.importer.startswith(f"{place}.") for place in VLLM_MODULES)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["vllm_lora_router.cli", "vllm_lora_router.config"])
def test_the_command_line_and_the_configuration_load_no_heavy_library(module: str) -> None:
    program = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == ""
