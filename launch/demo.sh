#!/usr/bin/env bash
# Start a real vLLM server and watch it select adapters: bash launch/demo.sh [--keep]
# Creates the environment and builds small models on first use. --keep leaves the server running.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
bash launch/install.sh "$venv" demo
HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} exec "$venv/bin/python" -m vllm_lora_router.tools.demo --config config/guide.yaml "$@"
