"""The server under test: a process of its own on one core, with a recogniser that answers at once.

Everything but the recogniser is the server that `qwen3-asr-server serve` runs. The engine here cannot be
chosen by a setting. The measuring side talks to the process over a pipe: `Target` is its handle.
"""

import asyncio
import contextlib
import cProfile
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from _http import wait_ready
from _profile import Overhead, ProfileRows, measure_overhead, new_profile, rows_of
from prometheus_client import CollectorRegistry

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import EngineInfo, Hypothesis, Samples, StepKind, StreamOptions
from qwen3_asr_server.frontends._app import create_server
from qwen3_asr_server.frontends._server import tune_process
from qwen3_asr_server.runtime.services import Services

START_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = 60
WORDS = ["seven", "plain", "words", "that", "nobody", "said", "today"]
SAMPLES_A_WORD = 6400


class InstantStream:
    """A word for every 400 ms, without looking at the audio."""

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        """Answer at once; longer audio extends the text of shorter audio."""
        count = len(audio) // SAMPLES_A_WORD
        return Hypothesis(" ".join(WORDS[index % len(WORDS)] for index in range(count)), language="en")

    async def close(self) -> None:
        """Nothing to give back."""


class InstantEngine:
    """A recogniser that costs nothing, so that what is measured is the server."""

    info = EngineInfo(
        name="instant",
        model="instant",
        description="Answers at once whatever is said; for benchmarks.",
        languages=frozenset({"en"}),
        default_language="en",
        production=False,
    )

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to release."""

    def open_stream(self, options: StreamOptions) -> InstantStream:
        """Begin a piece."""
        return InstantStream()


@dataclass(slots=True)
class Measured:
    """What the server's process did between `begin` and `end`."""

    wall_s: float
    cpu_s: float
    """All threads, user and system."""
    threads_s: dict[str, float]
    """CPU time of each thread that lived throughout, by name."""
    vad_lags_s: list[float]
    """From packet to VAD decision, every observation of `asr_vad_lag_seconds`."""
    batch_rows: list[float]
    """Sessions in each VAD call."""
    audio_s: float
    """Audio that the sessions took in."""


class Target:
    """Handle of the server's process. Use `target()` to get one."""

    def __init__(self, connection: Connection, port: int) -> None:
        self._connection = connection
        self.port = port

    def begin(self) -> None:
        """Start to measure."""
        self._ask("begin")

    def end(self) -> Measured:
        """Return the measurements since `begin`."""
        measured: Measured = self._ask("end")
        return measured

    def profile_begin(self) -> None:
        """Start to profile the event loop's thread; everything gets slower."""
        self._ask("profile_begin")

    def profile_end(self) -> ProfileRows:
        """Return where the event loop's time went."""
        rows: ProfileRows = self._ask("profile_end")
        return rows

    def _ask(self, command: str) -> Any:
        self._connection.send(command)
        if not self._connection.poll(ANSWER_TIMEOUT_S):
            raise TimeoutError(f"the server under test did not answer {command!r}")
        return self._connection.recv()


@contextlib.contextmanager
def target(core: int | None) -> Iterator[Target]:
    """Run the server pinned to `core` (None: wherever) while the context lasts."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, core), daemon=True)
    process.start()
    try:
        if not ours.poll(START_TIMEOUT_S):
            raise TimeoutError("the server under test did not start")
        port = ours.recv()
        wait_ready(f"http://127.0.0.1:{port}/health/ready", START_TIMEOUT_S)
        yield Target(ours, port)
    finally:
        process.terminate()
        process.join(10)


class _Recorder:
    """A histogram that also keeps what it observes."""

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self.values: list[float] = []

    def observe(self, value: float) -> None:
        self.values.append(value)
        self._histogram.observe(value)


@dataclass(slots=True)
class _Meter:
    """The measuring side inside the process."""

    loop: asyncio.AbstractEventLoop
    lags: _Recorder
    rows: _Recorder
    registry: CollectorRegistry
    begun: tuple[float, float, float] = (0.0, 0.0, 0.0)
    threads: dict[int, float] = field(default_factory=dict)
    profile: cProfile.Profile | None = None
    overhead: Overhead | None = None

    def answer(self, connection: Connection) -> None:
        """Obey commands until the other side is gone. Runs in a thread of its own."""
        with contextlib.suppress(EOFError):
            while True:
                connection.send(getattr(self, connection.recv())())

    def begin(self) -> None:
        self.lags.values.clear()
        self.rows.values.clear()
        self.threads = _threads_cpu_s()
        self.begun = self._now()

    def end(self) -> Measured:
        wall_s, cpu_s, audio_s = (after - before for after, before in zip(self._now(), self.begun, strict=True))
        now = _threads_cpu_s()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        threads_s: dict[str, float] = {}
        for ident, before in self.threads.items():
            if ident in now:
                threads_s[names[ident]] = threads_s.get(names[ident], 0.0) + now[ident] - before
        return Measured(wall_s, cpu_s, threads_s, list(self.lags.values), list(self.rows.values), audio_s)

    def _now(self) -> tuple[float, float, float]:
        audio_s = self.registry.get_sample_value("asr_audio_received_seconds_total")
        return time.perf_counter(), time.process_time(), audio_s or 0.0

    def profile_begin(self) -> None:
        self.overhead = measure_overhead()
        self.profile = new_profile()
        self.loop.call_soon_threadsafe(self.profile.enable)

    def profile_end(self) -> ProfileRows:
        assert self.profile is not None
        done = threading.Event()

        def disable() -> None:
            assert self.profile is not None
            self.profile.disable()
            done.set()

        self.loop.call_soon_threadsafe(disable)
        done.wait(10)
        assert self.overhead is not None
        return rows_of(self.profile, self.overhead)


def _run(connection: Connection, core: int | None) -> None:
    """Serve until terminated."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    # Sessions are not to be refused because those before them pushed their audio faster than it was spoken.
    settings = Settings(_env_file=None, max_sessions=4096, log_level="error", streaming_chunk_size_sec=30)
    services = Services(settings, engine=InstantEngine())
    lags = services.metrics.vad_lag_seconds = _Recorder(services.metrics.vad_lag_seconds)
    rows = services.metrics.vad_batch_rows = _Recorder(services.metrics.vad_batch_rows)
    server = create_server(settings, services)
    tune_process()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    with listener, asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        meter = _Meter(runner.get_loop(), lags, rows, services.metrics.registry)
        threading.Thread(target=meter.answer, args=(connection,), daemon=True, name="meter").start()
        connection.send(listener.getsockname()[1])
        runner.run(server.serve(sockets=[listener]))


def _threads_cpu_s() -> dict[int, float]:
    clocks = {}
    for thread in threading.enumerate():
        assert thread.ident is not None
        clocks[thread.ident] = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return clocks
