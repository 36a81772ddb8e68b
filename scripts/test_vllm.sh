#!/usr/bin/env bash
# `make test-vllm`: the engines with Qwen3-ASR weights, vllm in real vLLM, on the processor, with the tiny checkpoint of
# tests/data. Makes two environments first (qwen-asr does not fit beside vLLM); needs no network after that, no GPU and
# no weights from elsewhere.
#
#     scripts/test_vllm.sh [PYTEST ARGUMENT…]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/steps.sh

export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1

make_environment() { python="$(scripts/vllm_env.sh)"; }
make_reference() {
    QWEN_ASR_PYTHON="$(scripts/qwen_asr_env.sh)" &&
        export QWEN_ASR_PYTHON
}
# ENGINE PYTHON [PYTEST ARGUMENT…]
run_contract() { QWEN3_ASR_TEST_ENGINE="$1" "$2" -m pytest -W default tests/contract/test_engines.py "${@:3}"; }
run_words() { "$QWEN_ASR_PYTHON" -m pytest -W default tests/words "$@"; }
run_own() { "$python" -m pytest tests/vllm "$@"; }

step "environment" make_environment
step "environment of qwen-asr" make_reference
step "contract of vllm" run_contract vllm "$python" "$@"
step "contract of vllm_http" run_contract vllm_http "$python" "$@"
step "contract of transformers" run_contract transformers "$python" "$@"
step "contract of qwen_asr" run_contract qwen_asr "$QWEN_ASR_PYTHON" "$@"
step "words of Japanese and Korean" run_words "$@"
step "tests/vllm" run_own "$@"
total "test-vllm"
