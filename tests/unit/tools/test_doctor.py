"""`vllm-lora-router doctor`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.server.vllm import TESTED_RELEASES

if TYPE_CHECKING:
    from .conftest import Run

Install = Callable[..., None]

# The real entry point imports vLLM; doctor loads any entry point of this name.
ROUTER_ENTRY_POINT = "[vllm.endpoint_plugins]\nlora_router = vllm_lora_router.types:Query\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Write package metadata like an installer; it takes precedence over the environment's own packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")

    def write(name: str, version: str, entry_points: str = "") -> None:
        folder = tmp_path / "site-packages" / f"{name.replace('-', '_')}-{version.partition('+')[0]}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text(entry_points)

    for name, version in (
        ("vllm", TESTED_RELEASES[-1]),
        ("torch", "2.9.0"),
        ("transformers", "5.0"),
        ("sentence-transformers", "5.1"),
    ):
        write(name, version)
    return write


def report(printed: str) -> dict[str, tuple[str, str]]:
    """Return the rows of the report: subject -> state and detail."""
    cells = [[cell.strip() for cell in row.split("│")[1:-1]] for row in printed.splitlines() if row.startswith("│")]
    return {subject: (state, detail) for state, subject, detail in cells}


def test_installation_without_errors_exits_with_0(run: Run, install: Install, examples: Path) -> None:
    install("vllm-lora-router", "0.1.0", ROUTER_ENTRY_POINT)
    status, printed, _ = run("doctor", "--config", examples / "keyword.yaml")
    findings = report(printed)
    assert status == 0, printed
    assert findings["vllm"] == ("ok", f"{TESTED_RELEASES[-1]}: tested with this version")
    assert findings["entry point"] == ("ok", "lora_router = vllm_lora_router.types:Query")
    assert findings["VLLM_PLUGINS"][0] == "ok"
    assert findings["configuration"][0] == "ok"
    assert findings["transformers"] == ("ok", "5.0")


def test_rust_front_end_is_an_error(run: Run, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("vllm-lora-router", "0.1.0", ROUTER_ENTRY_POINT)
    for value, status in (("1", 1), ("0", 0), ("", 0)):
        monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", value)
        exit_status, printed, _ = run("doctor")
        assert exit_status == status, printed
        assert ("VLLM_USE_RUST_FRONTEND" in report(printed)) is bool(status)
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    assert report(run("doctor")[1])["VLLM_USE_RUST_FRONTEND"] == (
        "error",
        "the Rust front end loads no endpoint plugins: unset it",
    )


def test_untested_vllm_version_is_a_warning(run: Run, install: Install, tmp_path: Path) -> None:
    install("vllm-lora-router", "0.1.0", ROUTER_ENTRY_POINT)
    (tmp_path / f"site-packages/vllm-{TESTED_RELEASES[-1]}.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.99.0\n"
    )
    status, printed, _ = run("doctor")
    state, detail = report(printed)["vllm"]
    assert (status, state) == (0, "warning")
    assert detail.startswith("0.99.0: not tested with this version; tested with ")


@pytest.mark.parametrize(
    ("entry_points", "detail"),
    [
        ("", "lora_router is not registered: install this package with pip"),
        (ROUTER_ENTRY_POINT.replace("Query", "Nothing"), "vllm_lora_router.types:Nothing cannot be loaded: "),
    ],
)
def test_plugin_that_vllm_cannot_load_is_an_error(run: Run, install: Install, entry_points: str, detail: str) -> None:
    install("vllm-lora-router", "0.1.0", entry_points)
    status, printed, _ = run("doctor")
    state, text = report(printed)["entry point"]
    assert (status, state) == (1, "error")
    assert text.startswith(detail)


def test_other_plugins_are_listed(run: Run, install: Install) -> None:
    install("vllm-lora-router", "0.1.0", ROUTER_ENTRY_POINT)
    install("acme", "1.0", "[vllm.endpoint_plugins]\nacme = acme.plugin:Plugin\n")
    assert report(run("doctor")[1])["other plugin"] == ("ok", "acme = acme.plugin:Plugin")


@pytest.mark.parametrize(
    ("variable", "value", "state"),
    [
        ("VLLM_PLUGINS", "lora_router", "ok"),
        ("VLLM_PLUGINS", "acme,lora_router", "ok"),
        ("VLLM_PLUGINS", "acme", "warning"),
        ("VLLM_PLUGINS", "", "warning"),
        ("VLLM_SKIP_MODEL_NAME_VALIDATION", "1", "warning"),
        ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True", "warning"),
    ],
)
def test_environment_variable_is_reported(
    run: Run, install: Install, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, state: str
) -> None:
    install("vllm-lora-router", "0.1.0", ROUTER_ENTRY_POINT)
    monkeypatch.setenv(variable, value)
    status, printed, _ = run("doctor")
    assert (status, report(printed)[variable][0]) == (0, state)


def test_cuda_package_with_cpu_torch_is_an_error(run: Run, install: Install, tmp_path: Path) -> None:
    install("vllm-lora-router", "0.1.0", ROUTER_ENTRY_POINT)
    (tmp_path / "site-packages/torch-2.9.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0+cpu\n"
    )
    install("torchvision", "0.24.0")
    status, printed, _ = run("doctor")
    assert status == 1
    assert report(printed)["torchvision"] == (
        "error",
        "0.24.0 is built for CUDA, torch 2.9.0+cpu is not: pip uninstall torchvision",
    )


def test_invalid_configuration_is_an_error_and_missing_one_a_warning(
    run: Run, install: Install, tmp_path: Path
) -> None:
    install("vllm-lora-router", "0.1.0", ROUTER_ENTRY_POINT)
    status, printed, _ = run("doctor", "--config", tmp_path / "nowhere.yaml")
    assert (status, report(printed)["configuration"][0]) == (0, "warning")
    invalid = tmp_path / "wrong.yaml"
    invalid.write_text("categories: []\n")
    status, printed, _ = run("doctor", "--config", invalid)
    state, detail = report(printed)["configuration"]
    assert (status, state) == (1, "error")
    assert detail.endswith(f"problems; vllm-lora-router validate {invalid} lists them")
