#!/usr/bin/env bash
# Build the wheel, install it into a clean environment, and see that this environment is small, has no
# torch, passes `doctor` and serves a session. Versions are those of uv.lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

limit_mb=310
env=.venvs/wheel
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT

rm -rf "$env"
scripts/uv.sh build --quiet --wheel --out-dir "$build"
scripts/uv.sh export --quiet --frozen --no-dev --no-hashes --no-emit-project >"$build/constraints.txt"
scripts/uv.sh venv --quiet "$env"
scripts/uv.sh pip install --quiet --python "$env" --constraint "$build/constraints.txt" "$build"/*.whl

size_mb=$(du -sm "$env" | cut -f1)
echo "base install: $size_mb MB"
if [ "$size_mb" -ge "$limit_mb" ]; then
    echo "the limit is $limit_mb MB" >&2
    exit 1
fi
if scripts/uv.sh pip list --quiet --python "$env" --format freeze | grep -iE '^(torch|torchaudio|vllm|transformers)=='; then
    echo "the base install must not bring these" >&2
    exit 1
fi

"$env/bin/qwen3-asr-server" doctor
"$env/bin/python" scripts/smoke.py
