#!/usr/bin/env bash
# Make the environment .venvs/qwen-asr: the official package qwen-asr on the processor, this project and its test tools.
# It pins another transformers than vLLM needs, so the two cannot share one. Prints its Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

env=.venvs/qwen-asr
python="$env/bin/python"
wanted="$(cat scripts/qwen_asr_env.sh pyproject.toml | sha256sum)"
if [ "$(cat "$env/complete" 2>/dev/null || true)" = "$wanted" ]; then
    echo "$PWD/$python"
    exit
fi

tools=("pytest>=8.3" "pytest-asyncio>=0.25" "jiwer>=3.1" "hypothesis>=6.120" "httpx>=0.28")

find_python() {
    for candidate in python3.11 python3.12 python3.13 python3 .venv/bin/python; do
        if "$candidate" -c 'import sys, venv; raise SystemExit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11, 3.12 or 3.13 is needed" >&2
    exit 1
}

{
    rm -rf "$env"
    "$(find_python)" -m venv "$env"
    # Where pip finds a CPU build of torch under that name it is used; elsewhere uv knows PyTorch's own index.
    "$python" -m pip install --quiet "qwen-asr==0.0.6" "torch==2.13.0+cpu" ||
        scripts/uv.sh pip install --quiet --python "$env" --torch-backend=cpu "qwen-asr==0.0.6" "torch==2.13.0"
    "$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' |
        "$python" -m pip install --quiet --requirement /dev/stdin "${tools[@]}"
    "$python" -m pip install --quiet --no-deps --editable .
    echo "$wanted" >"$env/complete"
} >&2
echo "$PWD/$python"
