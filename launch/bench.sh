#!/usr/bin/env bash
# Measure the cost of routing and of many adapters: bash launch/bench.sh [arguments of `vllm-lora-router bench serve`]
# Routing is compared with named adapters on a server without the router, and with proxies in front of vLLM.
# Takes about ten minutes on two cores. LITELLM names a folder for an environment with LiteLLM's proxy, which is created
# if it does not exist; without LITELLM, LiteLLM is not compared.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
bash launch/install.sh "$venv" demo,bench
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
litellm=()
if [ -n "${LITELLM:-}" ]; then
  if [ ! -x "$LITELLM/bin/litellm" ]; then
    echo "installing LiteLLM's proxy into $LITELLM"
    "${PYTHON:-python3}" -m venv "$LITELLM"
    "$LITELLM/bin/python" -m pip install --disable-pip-version-check -qq 'litellm[proxy,semantic-router]'
  fi
  litellm=(--litellm "$LITELLM/bin/python")
fi
"$venv/bin/vllm-lora-router" bench serve "${litellm[@]}" "$@"
"$venv/bin/vllm-lora-router" bench adapters --switches 10 --rounds 2 --seconds 2
