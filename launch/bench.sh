#!/usr/bin/env bash
# What routing costs on this machine: bash launch/bench.sh [--pairs N]
# The same request in alternating pairs on one connection, once naming its adapter and once as MoM.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
bash launch/install.sh "$venv" demo
HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} exec "$venv/bin/python" -m vllm_lora_router.bench "$@"
