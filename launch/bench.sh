#!/usr/bin/env bash
# What routing costs on this machine, against naming the adapter without a router and against proxies in front of vLLM,
# and what many adapters cost: bash launch/bench.sh [ARGUMENTS of `vllm-lora-router bench serve`]
# About ten minutes on two cores. LITELLM is a folder for an environment with LiteLLM's proxy, made where it is missing;
# without it there is no such comparison.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
bash launch/install.sh "$venv" demo,bench
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
peer=()
if [ -n "${LITELLM:-}" ]; then
  if [ ! -x "$LITELLM/bin/litellm" ]; then
    echo "installing LiteLLM's proxy into $LITELLM"
    "${PYTHON:-python3}" -m venv "$LITELLM"
    "$LITELLM/bin/python" -m pip install --disable-pip-version-check -qq 'litellm[proxy,semantic-router]'
  fi
  peer=(--litellm "$LITELLM/bin/python")
fi
"$venv/bin/vllm-lora-router" bench serve "${peer[@]}" "$@"
"$venv/bin/vllm-lora-router" bench adapters --switches 10 --rounds 2 --seconds 2
