#!/usr/bin/env bash
# `make test-sdk`: run tests/sdk with each SDK version in its own environment. The server under test runs
# from the project's environment, so these hold the SDK and the test tools only.
#
#     scripts/test_sdk.sh [VERSION…]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/steps.sh

versions=("$@")
if [ ${#versions[@]} -eq 0 ]; then
    versions=(1.25.6 1.25.24 1.27.8 2.0.2)
fi
tools=(pytest pytest-asyncio numpy av soxr jiwer websockets)

constraints="$(mktemp)"
trap 'rm -f "$constraints"' EXIT
scripts/uv.sh export --quiet --frozen --no-hashes --no-emit-project --no-emit-package dashscope >"$constraints"

# Joined by && because `step` runs it in a condition, where a failing line would not end it.
test_with() {
    local version="$1" env=".venvs/sdk-$1"
    { [ -x "$env/bin/python" ] || scripts/uv.sh venv --quiet "$env"; } &&
        scripts/uv.sh pip install --quiet --python "$env" --constraint "$constraints" "dashscope==$version" "${tools[@]}" &&
        PYTHONPATH=src QWEN3_ASR_TEST_PYTHON="$PWD/.venv/bin/python" "$env/bin/python" -m pytest -m sdk tests/sdk
}

for version in "${versions[@]}"; do
    step "dashscope $version" test_with "$version"
done
total "SDK versions"
