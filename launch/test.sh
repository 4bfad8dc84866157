#!/usr/bin/env bash
# All tests, in an environment of this project's own: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
bash launch/install.sh "$venv" demo,dev
python="$venv/bin/python"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pyright --pythonpath "$python"
exec "$python" -m pytest --durations=60 --durations-min=5 "$@"
