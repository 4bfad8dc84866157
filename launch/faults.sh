#!/usr/bin/env bash
# What happens to a real server when its adapters' files change in every way under load, how late its event loop is
# while it classifies, how a thousand tenants fare with a tool that says whose they are, and whether `prove` finds what is
# planted in ten builds of the demo: bash launch/faults.sh
# Takes more than an hour; the tests have a short form of each. Prints its figures; pytest's arguments may follow.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
bash launch/install.sh "$venv" demo,dev
HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} exec "$venv/bin/python" -m pytest tests/server/test_faults.py tests/server/test_loop_lag.py tests/server/test_tenants.py tests/server/test_prove.py --full -s -v "$@"
