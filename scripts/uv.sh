#!/usr/bin/env bash
# Run uv with the given arguments, installing it first where it is missing. Called by make and the other scripts.
set -euo pipefail

private="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venvs/uv"

find_uv() {
    for candidate in "$(command -v uv || true)" "$HOME/.local/bin/uv" "$private/bin/uv"; do
        if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

install_uv() {
    local python
    python="$(command -v python3.11 || command -v python3)" || {
        echo "uv is missing, and no python3 was found to install it with" >&2
        exit 1
    }
    echo "uv is missing; installing it for this user (python3 -m pip install --user uv)" >&2
    if ! "$python" -m pip install --quiet --user uv >/dev/null 2>&1; then
        echo "that is not allowed here; installing it into .venvs/uv instead" >&2
        "$python" -m pip install --quiet --target "$private" uv >&2
    fi
}

uv="$(find_uv)"
if [ -z "$uv" ]; then
    install_uv
    uv="$(find_uv)"
fi
if [ -z "$uv" ]; then
    echo "uv could not be installed; see its own installation guide, then run make again" >&2
    exit 1
fi
exec "$uv" "$@"
