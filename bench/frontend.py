"""How many sessions one core carries when the recogniser costs nothing.

N clients in another process, on another core, send real speech in 100 ms packets at real time; the server's own
work is sockets, JSON, base64, PCM, VAD and the session machine. Counted is the time from a packet's arrival to the
VAD decision on its last frame, measured inside the server, and cross-checked by the client: from sending the packet
that opens an utterance to `speech_started`.

    python bench/frontend.py                        ramp until p95 exceeds the bound
    python bench/frontend.py --sessions 100,200     these only
    python bench/frontend.py --profile 100          where the time goes
    python bench/frontend.py --report               table in docs/benchmarks.md from the newest results

A run is void when the client itself was late, when a session was dropped, or when a session's utterances are not
those that it has when it runs alone.
"""

import argparse
import asyncio
import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from _load import PERIOD_S, LoadResult, run_alone, run_load
from _profile import ProfileRows
from _report import RESULTS, append, circumstances, percentile, read_rows, write_table
from _speech import SpeechLoop
from _target import Measured, Target, target

RAMP = [25, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500]
BOUND_S = 0.050
LATE_S = 0.020
"""A client that was later than this with one packet in a hundred says nothing about the server."""
DISTINCT = 100
"""Sessions beyond so many repeat the others' speech, at other moments."""
OFFSET_PACKETS = 29


@dataclass(slots=True)
class Run:
    """One number of sessions, measured."""

    sessions: int
    load: LoadResult
    measured: Measured
    mismatches: int
    """Sessions whose utterances differ from those of the same speech alone."""

    @property
    def void(self) -> str:
        """Why the run does not count; empty when it does."""
        if percentile(self.load.lateness_s, 0.99) > LATE_S:
            return "late client"
        if any(transcript.dropped for transcript in self.load.transcripts):
            return "dropped sessions"
        return "other utterances than alone" if self.mismatches else ""


def main() -> None:
    options = _parser().parse_args()
    if options.report:
        _report()
        return
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    if client_core is not None:
        os.sched_setaffinity(0, {client_core})
    with target(server_core) as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        bench = Bench(server, options.seconds, options.silence_ms)
        if options.profile:
            runner.run(bench.profile(options.profile))
        else:
            path = options.out or RESULTS / f"frontend-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.jsonl"
            runner.run(bench.ramp(options.sessions, options.attempts, path))


class Bench:
    """Runs on one server."""

    def __init__(self, server: Target, seconds: float, silence_ms: int) -> None:
        self._server = server
        self._packets = round(seconds / PERIOD_S)
        self._silence_ms = silence_ms
        self._speech = SpeechLoop()
        self._alone: dict[int, tuple[int, int, int]] = {}

    async def ramp(self, counts: list[int], attempts: int, path: Path) -> None:
        """Measure each count, up to the first that misses the bound; write a row for each run."""
        around = circumstances()
        print(f"{around['cpu']}, Python {around['python']}, commit {around['commit']}, load {around['load_before']}")
        print(_HEADER)
        for count in counts:
            for _ in range(attempts):
                row = _row(await self.run(count))
                append(path, {**around, **row, "silence_ms": self._silence_ms, "seconds": self._packets * PERIOD_S})
                print(_line(row), flush=True)
                if not row["void"]:
                    break
            if row["void"] or row["lag_p95_ms"] > BOUND_S * 1000:
                break

    async def run(self, count: int, *, profile: bool = False) -> Run:
        """Measure one number of sessions."""
        offsets = [index % DISTINCT * OFFSET_PACKETS for index in range(count)]
        for offset in dict.fromkeys(offsets):
            if offset not in self._alone:
                stream = self._speech.frames(offset, self._packets)
                alone = await run_alone(self._server.port, stream, self._silence_ms)
                self._alone[offset] = alone.shape
        measured: list[Measured] = []

        def begin() -> None:
            if profile:
                self._server.profile_begin()
            self._server.begin()

        load = await run_load(
            self._server.port,
            [self._speech.frames(offset, self._packets) for offset in offsets],
            self._silence_ms,
            on_steady=begin,
            on_sent=lambda: measured.append(self._server.end()),
        )
        pairs = zip(load.transcripts, offsets, strict=True)
        mismatches = sum(transcript.shape != self._alone[offset] for transcript, offset in pairs)
        return Run(count, load, measured[0], mismatches)

    async def profile(self, count: int) -> None:
        """Print where the time of `count` sessions goes: first without, then with the profiler."""
        plain = (await self.run(count)).measured
        profiled = (await self.run(count, profile=True)).measured
        _print_profile(count, plain, profiled, self._server.profile_end())


_COLUMNS = (
    ("sessions", "sessions"),
    ("p50", "lag_p50_ms"),
    ("p95", "lag_p95_ms"),
    ("p99", "lag_p99_ms"),
    ("client p50", "client_lag_p50_ms"),
    ("client p95", "client_lag_p95_ms"),
    ("late p99", "late_p99_ms"),
    ("core %", "server_cpu_percent"),
    ("µs/packet", "cpu_us_per_packet"),
    ("batch", "vad_batch_mean"),
    ("utterances", "utterances"),
    ("void", "void"),
)
_HEADER = " ".join(f"{title:>10}" for title, _ in _COLUMNS)


def _row(run: Run) -> dict[str, Any]:
    lags = run.measured.vad_lags_s
    client = [lag for transcript in run.load.transcripts for lag in transcript.speech_lags]
    return {
        "sessions": run.sessions,
        "lag_p50_ms": _ms(lags, 0.50),
        "lag_p95_ms": _ms(lags, 0.95),
        "lag_p99_ms": _ms(lags, 0.99),
        "lag_samples": len(lags),
        "client_lag_p50_ms": _ms(client, 0.50),
        "client_lag_p95_ms": _ms(client, 0.95),
        "late_p50_ms": _ms(run.load.lateness_s, 0.50),
        "late_p99_ms": _ms(run.load.lateness_s, 0.99),
        "server_cpu_percent": round(100 * run.measured.cpu_s / run.measured.wall_s, 1),
        "cpu_us_per_packet": round(1e6 * run.measured.cpu_s * PERIOD_S / run.measured.audio_s),
        "client_cpu_percent": round(100 * run.load.cpu_share, 1),
        "vad_batch_mean": round(sum(run.measured.batch_rows) / max(1, len(run.measured.batch_rows)), 1),
        "utterances": sum(transcript.shape[2] for transcript in run.load.transcripts),
        "dropped": sum(transcript.dropped for transcript in run.load.transcripts),
        "mismatches": run.mismatches,
        "void": run.void,
    }


def _ms(values: list[float], share: float) -> float:
    return round(1000 * percentile(values, share), 2) if values else float("nan")


def _line(row: dict[str, Any]) -> str:
    return " ".join(f"{row[key]!s:>10}" for _, key in _COLUMNS)


def _print_profile(count: int, plain: Measured, profiled: Measured, rows: ProfileRows) -> None:
    """Print CPU time for each packet, the profile scaled to what the loop's thread used without it.

    What neither thread nor function accounts for is the event loop itself: uvloop is written in C.
    """
    packets, profiled_packets = plain.audio_s / PERIOD_S, profiled.audio_s / PERIOD_S
    loop_s = plain.threads_s["MainThread"] / packets
    python_s = sum(rows.parts_s.values()) / profiled_packets
    scale = min(1.0, loop_s / python_s) / profiled_packets
    costs = {name: own_s * scale for name, own_s in rows.parts_s.items()}
    costs["event loop in C (uvloop, sockets, task switches)"] = max(0.0, loop_s - python_s)
    costs |= {f"thread {name}": used / packets for name, used in plain.threads_s.items() if name != "MainThread"}
    total_s = plain.cpu_s / packets
    costs["other threads"] = max(0.0, total_s - sum(costs.values()))
    print(f"\n{count} sessions, CPU time for each packet of 100 ms: {1e6 * total_s:.0f} µs")
    for name, cost_s in sorted(costs.items(), key=lambda entry: -entry[1]):
        if cost_s > 1e-6:
            print(f"{1e6 * cost_s:7.0f} µs {100 * cost_s / total_s:5.1f} %  {name}")
    print("\ncostliest functions (own time):")
    for own_s, calls, place in rows.functions:
        print(f"{1e6 * own_s * scale:7.1f} µs  {calls / profiled_packets:6.2f} calls  {place}")


def _report() -> None:
    rows = [row for row in read_rows("frontend-*.jsonl") if not row["void"]]
    last = rows[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    carried = [row["sessions"] for row in rows if row["lag_p95_ms"] < BOUND_S * 1000]
    where = f"commit {last['commit']}, one core of {last['cores']} × {last['cpu']}, Python {last['python']}"
    how = (
        f"Runs of {last['seconds']:.0f} s, `silence_duration_ms` {last['silence_ms']}, load of the machine before them "
    )
    how += f"{last['load_before']}."
    lines = [
        f"{last['date'][:10]}, {where}; {versions}.",
        f"{how} Carried with p95 under {BOUND_S * 1000:.0f} ms: **{max(carried, default=0)} sessions**.",
        "",
        "| sessions | lag p50 ms | p95 ms | p99 ms | client p50 ms | p95 ms | late p99 ms | core % | µs/packet |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ["sessions", "lag_p50_ms", "lag_p95_ms", "lag_p99_ms", "client_lag_p50_ms", "client_lag_p95_ms"]
    keys += ["late_p99_ms", "server_cpu_percent", "cpu_us_per_packet"]
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    write_table("frontend", lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=lambda text: [int(part) for part in text.split(",")], default=RAMP)
    parser.add_argument("--seconds", type=float, default=20.0, help="audio of each session (%(default)s)")
    parser.add_argument("--silence-ms", type=int, default=400, help="silence that ends an utterance (%(default)s)")
    parser.add_argument("--attempts", type=int, default=2, help="runs of a count when the first is void")
    parser.add_argument("--profile", type=int, metavar="SESSIONS", help="print where the time goes")
    parser.add_argument("--report", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--out", type=Path, help="file for the results (bench/results/frontend-<date>.jsonl)")
    return parser


if __name__ == "__main__":
    main()
