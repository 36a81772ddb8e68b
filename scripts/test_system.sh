#!/usr/bin/env bash
# `make test-system`: tests that need Debian packages (a browser). Installs them when run as root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v chromium >/dev/null; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "chromium is missing: sudo apt-get install chromium" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends chromium
fi
scripts/uv.sh run --no-sync pytest tests/system
