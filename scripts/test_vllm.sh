#!/usr/bin/env bash
# `make test-vllm`: the engine vllm in real vLLM, on the processor, with the tiny checkpoint of tests/data. Makes its
# environment first; needs no network after that, no GPU and no weights from elsewhere.
#
#     scripts/test_vllm.sh [PYTEST ARGUMENT…]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/steps.sh

export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1

make_environment() { python="$(scripts/vllm_env.sh)"; }
run_contract() { QWEN3_ASR_TEST_ENGINE=vllm "$python" -m pytest -W default tests/contract/test_engines.py "$@"; }
run_own() { "$python" -m pytest tests/vllm "$@"; }

step "environment" make_environment
step "contract" run_contract "$@"
step "tests/vllm" run_own "$@"
total "test-vllm"
