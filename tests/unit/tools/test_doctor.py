"""`vllm-lora-router doctor`: what is installed, what is set, and what is in the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.server.vllm.releases import TESTED

if TYPE_CHECKING:
    from .conftest import Run

Install = Callable[..., None]

# What the entry point leads to in the real package imports vLLM; doctor loads whatever it names.
OURS = "[vllm.endpoint_plugins]\nlora_router = vllm_lora_router.types:Query\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts the metadata of packages before that of the environment's own, as an installer writes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")

    def write(name: str, version: str, entry_points: str = "") -> None:
        folder = tmp_path / "site-packages" / f"{name.replace('-', '_')}-{version.partition('+')[0]}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text(entry_points)

    for name, version in (
        ("vllm", TESTED[-1]),
        ("torch", "2.9.0"),
        ("transformers", "5.0"),
        ("sentence-transformers", "5.1"),
    ):
        write(name, version)
    return write


def report(printed: str) -> dict[str, tuple[str, str]]:
    """What was found: name -> state and detail."""
    cells = [[cell.strip() for cell in row.split("│")[1:-1]] for row in printed.splitlines() if row.startswith("│")]
    return {what: (state, detail) for state, what, detail in cells}


def test_when_nothing_is_in_the_way_it_says_so_with_0(run: Run, install: Install, examples: Path) -> None:
    install("vllm-lora-router", "0.1.0", OURS)
    status, printed, _ = run("doctor", "--config", examples / "keyword.yaml")
    found = report(printed)
    assert status == 0, printed
    assert found["vllm"] == ("ok", f"{TESTED[-1]}: tested with this version")
    assert found["entry point"] == ("ok", "lora_router = vllm_lora_router.types:Query")
    assert found["VLLM_PLUGINS"][0] == "ok"
    assert found["configuration"][0] == "ok"
    assert found["transformers"] == ("ok", "5.0")


def test_the_rust_front_end_is_in_the_way(run: Run, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("vllm-lora-router", "0.1.0", OURS)
    for value, status in (("1", 1), ("0", 0), ("", 0)):
        monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", value)
        ended, printed, _ = run("doctor")
        assert ended == status, printed
        assert ("VLLM_USE_RUST_FRONTEND" in report(printed)) is bool(status)
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    assert report(run("doctor")[1])["VLLM_USE_RUST_FRONTEND"] == (
        "in the way",
        "that server loads no endpoint plugin: unset it",
    )


def test_a_vllm_that_was_not_tried_is_a_warning(run: Run, install: Install, tmp_path: Path) -> None:
    install("vllm-lora-router", "0.1.0", OURS)
    (tmp_path / f"site-packages/vllm-{TESTED[-1]}.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.99.0\n"
    )
    status, printed, _ = run("doctor")
    state, detail = report(printed)["vllm"]
    assert (status, state) == (0, "warning")
    assert detail.startswith("0.99.0: not tested with this version, but with ")


@pytest.mark.parametrize(
    ("entry_points", "detail"),
    [
        ("", "lora_router is not registered: install this package with pip"),
        (OURS.replace("Query", "Nothing"), "vllm_lora_router.types:Nothing cannot be loaded: "),
    ],
)
def test_a_plugin_that_vllm_would_not_load_is_in_the_way(
    run: Run, install: Install, entry_points: str, detail: str
) -> None:
    install("vllm-lora-router", "0.1.0", entry_points)
    status, printed, _ = run("doctor")
    state, said = report(printed)["entry point"]
    assert (status, state) == (1, "in the way")
    assert said.startswith(detail)


def test_other_plugins_are_named_since_naming_one_turns_the_others_off(run: Run, install: Install) -> None:
    install("vllm-lora-router", "0.1.0", OURS)
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
def test_what_the_environment_sets_is_told(
    run: Run, install: Install, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, state: str
) -> None:
    install("vllm-lora-router", "0.1.0", OURS)
    monkeypatch.setenv(variable, value)
    status, printed, _ = run("doctor")
    assert (status, report(printed)[variable][0]) == (0, state)


def test_a_build_for_cuda_beside_a_torch_without_it_is_in_the_way(run: Run, install: Install, tmp_path: Path) -> None:
    install("vllm-lora-router", "0.1.0", OURS)
    (tmp_path / "site-packages/torch-2.9.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0+cpu\n"
    )
    install("torchvision", "0.24.0")
    status, printed, _ = run("doctor")
    assert status == 1
    assert report(printed)["torchvision"] == (
        "in the way",
        "0.24.0 is built for CUDA, torch 2.9.0+cpu is not: pip uninstall torchvision",
    )


def test_a_configuration_with_problems_is_in_the_way_and_a_missing_one_is_a_warning(
    run: Run, install: Install, tmp_path: Path
) -> None:
    install("vllm-lora-router", "0.1.0", OURS)
    status, printed, _ = run("doctor", "--config", tmp_path / "nowhere.yaml")
    assert (status, report(printed)["configuration"][0]) == (0, "warning")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("categories: []\n")
    status, printed, _ = run("doctor", "--config", wrong)
    state, detail = report(printed)["configuration"]
    assert (status, state) == (1, "in the way")
    assert detail.endswith(f"problems; vllm-lora-router validate {wrong} lists them")
