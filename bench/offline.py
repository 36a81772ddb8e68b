"""How fast and how well recordings are transcribed: RTF, WER and CER over audio with reference texts.

Each file goes the way that every door for recordings goes, decoding of the file included, through the engine of the
settings. References are `.txt` files beside the audio of a folder, or lines `{"file", "text"}` of a `.jsonl` file.

    python bench/offline.py tests/data/speech/prompts.jsonl      prompts, by the engine of the settings
    ENGINE=vllm python bench/offline.py FOLDER --at-once 16      other speech, another engine
    python bench/offline.py --report                             the table on the page, from the newest results
"""

import argparse
import asyncio
import datetime
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import RESULTS, ROOT, append, circumstances, percentile, ran_on, write_table
from _scoring import NORMALISERS, Score, pooled, score

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.errors import ClientError
from qwen3_asr_server.runtime.from_settings import media_limits
from qwen3_asr_server.runtime.media import open_media
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.session.recorded import TranscribeOptions

PROMPTS = ROOT / "tests" / "data" / "speech" / "prompts.jsonl"
_AUDIO = frozenset([".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".webm", ".mp4", ".mkv", ".amr", ".aac"])
_HEAD = (
    "engine, model", "set", "files", "audio", "files at once", "RTF of all", "RTF of a file", "seconds a file",
    "WER %", "CER %", "normaliser",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recording:
    """A file and what is said in it."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file."""

    name: str
    audio_s: float
    wall_s: float
    text: str
    score: Score


def recordings_in(place: Path) -> list[Recording]:
    """Return every recording of a folder, or of a list, that has a reference, by name."""
    if place.is_dir():
        found = [path for path in place.rglob("*") if path.suffix.lower() in _AUDIO]
        pairs = {path: path.with_suffix(".txt") for path in found}
        return [Recording(path, text.read_text("utf-8")) for path, text in sorted(pairs.items()) if text.is_file()]
    entries = [json.loads(line) for line in place.read_text("utf-8").splitlines()]
    return sorted((Recording(place.parent / entry["file"], entry["text"]) for entry in entries), key=_by_path)


def _by_path(recording: Recording) -> Path:
    return recording.path


async def measure(
    services: Services, settings: Settings, recordings: Sequence[Recording], options: argparse.Namespace
) -> dict[str, Any]:
    """Transcribe everything, some files at a time, and return the row of results."""
    normalise = NORMALISERS[options.normaliser]
    places = asyncio.Semaphore(options.at_once)

    async def one(recording: Recording) -> Outcome:
        async with places:
            began = time.perf_counter()
            try:
                async with open_media(recording.path, media_limits(settings)) as media:
                    transcript = await services.transcribe(media, TranscribeOptions(options.language))
            except ClientError as error:
                sys.exit(f"{recording.path}: {error.message}")
            wall_s = time.perf_counter() - began
        found = score(recording.text, transcript.text, normalise)
        return Outcome(recording.path.name, transcript.duration / SAMPLE_RATE, wall_s, transcript.text, found)

    await one(recordings[0])  # what is done only once is not measured
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(recording)) for recording in recordings]
    wall_s = time.perf_counter() - began
    return summary([task.result() for task in tasks], wall_s)


def summary(outcomes: Sequence[Outcome], wall_s: float) -> dict[str, Any]:
    """Return what is to be said about all files together, and about each."""
    audio_s, total = sum(each.audio_s for each in outcomes), pooled(each.score for each in outcomes)
    return {
        "files": len(outcomes),
        "audio_s": round(audio_s, 1),
        "wall_s": round(wall_s, 1),
        "rtf": round(wall_s / audio_s, 4),
        "file_rtf": _spread([each.wall_s / each.audio_s for each in outcomes]),
        "file_s": _spread([each.wall_s for each in outcomes]),
        "words": total.words,
        "wer": round(total.wer, 4),
        "cer": round(total.cer, 4),
        "each": [
            {
                "file": each.name,
                "audio_s": round(each.audio_s, 2),
                "wall_s": round(each.wall_s, 3),
                "wer": round(each.score.wer, 4),
                "cer": round(each.score.cer, 4),
                "text": each.text,
            }
            for each in outcomes
        ],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": round(percentile(list(values), share / 100), 3) for share in (50, 95, 99)}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the page's table."""
    lines = [ran_on(rows[0]) + (f" {rows[0]['note']}." if rows[0]["note"] else ""), ""]
    lines += ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    for row in rows:
        cells = (
            f"{row['engine']}, {row['model']}",
            row["set"],
            row["files"],
            f"{row['audio_s']:.0f} s",
            row["at_once"],
            f"{row['rtf']:.3f}",
            _cell(row["file_rtf"]),
            _cell(row["file_s"]),
            f"{100 * row['wer']:.1f}",
            f"{100 * row['cer']:.1f}",
            f"`{row['normaliser']}`",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _cell(spread: dict[str, float]) -> str:
    return " / ".join(f"{spread[name]:.2f}" for name in ("p50", "p95", "p99"))


async def run(options: argparse.Namespace, recordings: Sequence[Recording]) -> dict[str, Any]:
    """Start the engine of the settings, measure, and stop it."""
    settings = Settings(model_loading="eager", **({"engine": options.engine} if options.engine else {}))
    services = Services(settings)
    info = services.engine_info
    row = circumstances() | {
        "note": options.note,
        "engine": info.name,
        "model": info.model,
        "dtype": settings.model_dtype,
        "at_once": options.at_once,
        "language": options.language,
        "normaliser": options.normaliser,
        "set": options.name or options.place.resolve().stem,
    }
    try:
        await services.start()
        return row | await measure(services, settings, recordings, options)
    finally:
        await services.stop()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path, nargs="?", default=PROMPTS, help="a folder, or a list in a .jsonl file")
    parser.add_argument("--name", help="what the set is called in the table (default: the name of the place)")
    parser.add_argument("--engine", help="instead of that of the settings")
    parser.add_argument("--language", help="code of the language; detected by default")
    parser.add_argument("--at-once", type=int, default=1, help="files under way at once (default: 1)")
    parser.add_argument("--normaliser", choices=NORMALISERS, default="english")
    parser.add_argument("--note", default="", help="what else a reader should know, such as who shared the machine")
    parser.add_argument("--out", type=Path, help="file of JSON lines to add the row to (default: bench/results)")
    parser.add_argument("--report", action="store_true", help="only write the table of the newest results")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write down; or write the table."""
    options = arguments()
    if options.report:
        write_table("offline", table(newest_rows()))
        return 0
    logging.basicConfig(level=logging.ERROR)
    recordings = recordings_in(options.place)
    if not recordings:
        print(f"{options.place} has no audio with reference texts", file=sys.stderr)
        return 2
    row = asyncio.run(run(options, recordings))
    out = options.out or RESULTS / f"offline-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.jsonl"
    append(out, row)
    print("\n".join(table([row])))
    return 0


def newest_rows() -> list[dict[str, Any]]:
    """Return the rows of the newest file: the last for each engine, model, set and number of files at once."""
    lines = max(RESULTS.glob("offline-*.jsonl")).read_text("utf-8").splitlines()
    rows = {(row["engine"], row["model"], row["set"], row["at_once"]): row for row in map(json.loads, lines)}
    return list(rows.values())


if __name__ == "__main__":
    sys.exit(main())
