#!/usr/bin/env bash
# Run ruff, pyright and all tests, two at a time: bash launch/test.sh [pytest arguments]
# The tests run in an environment of this project, .venv unless VENV names another one.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
# Let Python store bytecode. Otherwise every server process compiles the libraries again.
export PYTHONDONTWRITEBYTECODE=
bash launch/install.sh "$venv" demo,dev
python="$venv/bin/python"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pyright --pythonpath "$python"

# With more threads than cores, threads that wait must not use the cores.
export OMP_WAIT_POLICY=passive
exec "$python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=5 "$@"
