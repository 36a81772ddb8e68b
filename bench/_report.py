"""Results as rows of JSONL, and the table in `docs/benchmarks.md` made from them.

The table stands between two marks; the text around it is written by hand. Used by the benchmarks.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PACKAGES = ("uvicorn", "websockets", "uvloop", "fastapi", "onnxruntime", "numpy", "soxr")


def circumstances() -> dict[str, Any]:
    """Return what a result depends on besides its settings."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "--", "src") else ""),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def write_table(name: str, lines: list[str]) -> None:
    """Replace what stands between the marks of table `name` on the page."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    PAGE.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")


def ran_on(row: dict[str, Any]) -> str:
    """Return on one line where, when and with what a row was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    machine = f"{row['cores']} × {row['cpu']}, Python {row['python']}, load before {row['load_before']}"
    return f"{row['date'][:10]}, commit {row['commit']}, {machine}; {versions}."


def read_rows(pattern: str) -> list[dict[str, Any]]:
    """Return the rows of the last run in the newest file of results that matches."""
    newest = max(RESULTS.glob(pattern))
    rows = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["date"] == rows[-1]["date"]]


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
