#!/usr/bin/env bash
# All tests, in an environment of this project's own: bash launch/test.sh [pytest arguments]
# What is marked `alone` runs by itself; of everything else two run at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
bash launch/install.sh "$venv" demo,dev
python="$venv/bin/python"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pyright --pythonpath "$python"

NONE_SELECTED=5 # pytest's own exit status for it
status=$NONE_SELECTED
tests() {
  local code=0
  "$python" -m pytest --durations=60 --durations-min=5 "$@" || code=$?
  if [ "$code" != "$NONE_SELECTED" ] && { [ "$status" = 0 ] || [ "$status" = "$NONE_SELECTED" ]; }; then status=$code; fi
}
# With more threads than cores, those that wait must not take the cores from those that they wait for.
OMP_WAIT_POLICY=passive tests -m "not alone" --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
tests -m alone "$@"
exit "$status"
