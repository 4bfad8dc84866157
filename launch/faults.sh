#!/usr/bin/env bash
# Run the long form of the tests on a real server, and print their figures: bash launch/faults.sh [pytest arguments]
# Adapter files and configurations change under load, the event loop is measured while it classifies, a thousand tenants
# use an MCP tool, `prove` searches wrong assignments in ten builds of the demo, and routing is compared with a proxy.
# Takes more than an hour. launch/test.sh runs a short form of each, without bounds on times.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
export PYTHONDONTWRITEBYTECODE=
bash launch/install.sh "$venv" demo,dev
long=(file_changes.py guard.py slots.py loop_lag.py tenants.py prove.py record.py shutdown.py bench.py)
timed=(adapters/files/test_fuzz.py adapters/runtime/test_growth.py classifiers/mcp/test_bad_requests.py
  classifiers/models/test_batcher.py config/test_fuzzing.py
  observability/test_audit_log.py observability/test_cost.py server/test_client.py server/test_exchange.py server/test_large_bodies.py tools/bench/test_compare.py
  tools/bench/test_load.py)
HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} exec "$venv/bin/python" -m pytest --full -s -v \
  "${long[@]/#/tests/server/test_}" "${timed[@]/#/tests/unit/}" "$@"
