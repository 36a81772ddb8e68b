#!/usr/bin/env bash
# `make check`: all that is asked of a change, fastest first; the first failure ends it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/steps.sh

run=(scripts/uv.sh run --no-sync)

step "uv.lock is up to date" scripts/uv.sh lock --check
step "environment" scripts/uv.sh sync --inexact --locked
step "format" "${run[@]}" ruff format --check
step "lint" "${run[@]}" ruff check
step "types" "${run[@]}" mypy
step "generated files" "${run[@]}" python scripts/generate.py --check
step "tests" "${run[@]}" pytest --ignore=tests/system --ignore=tests/vllm --ignore=tests/words
step "wheel in a clean environment" scripts/check_wheel.sh
total "check"
