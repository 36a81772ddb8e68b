"""The front end benchmark still runs and says something. Its figures are judged by people, not here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_run_writes_a_row(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = ["bench/frontend.py", "--sessions", "4", "--seconds", "6", "--attempts", "1", "--out", str(results)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, timeout=120)
    [row] = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert row["sessions"] == 4
    assert row["dropped"] == row["mismatches"] == 0
    assert row["utterances"] > 0
    assert 0 < row["lag_p50_ms"] <= row["lag_p95_ms"] <= row["lag_p99_ms"]


def test_a_profile_names_the_parts() -> None:
    command = ["bench/frontend.py", "--profile", "4", "--seconds", "5"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=True, timeout=120, capture_output=True, text=True)
    for part in ("thread vad", "session machine and text", "JSON and base64", "WebSocket and ASGI"):
        assert part in done.stdout
