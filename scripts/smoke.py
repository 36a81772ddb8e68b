"""Serve one realtime session from the package that this interpreter has installed, not from the sources.

Called by `scripts/check_wheel.sh` with the interpreter of a clean environment.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.process import running_server  # noqa: E402 - the path comes first

DEMO = ROOT / "demo" / "demo_raw.py"
CLIP = ROOT / "tests" / "data" / "speech" / "conversation.wav"


def main() -> None:
    with running_server(PYTHONPATH="") as server:
        command = [sys.executable, str(DEMO), "--fast", "--file", str(CLIP), "--url", server.url]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    finals = [line for line in output.splitlines() if line.startswith("final: ")]
    if len(finals) != 4:
        sys.exit(f"expected four finals, got:\n{output}")
    print("one session served:", *finals, sep="\n  ")


if __name__ == "__main__":
    main()
