"""Everything that lives as long as the server: engine, VAD, scheduler, admission, metrics, sessions, recordings.

Built from the settings, started and stopped once by the application, asked for sessions by the WebSocket loop and for
transcripts by the doors for files. Reads the settings; what it builds gets small option objects, which
`from_settings` makes. Knows no protocol and no web framework.

    loading ──▶ ready ──▶ draining ──▶ stopped
       └──▶ failed ◀─┘
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Final, Literal

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import SAMPLE_RATE, EngineInfo, SessionConfig, TurnDetection
from qwen3_asr_server.engines import load_aligner
from qwen3_asr_server.engines._base import Aligner, AlignerOptions, Engine
from qwen3_asr_server.errors import AsrServerError, InternalError, Overloaded, ShuttingDown
from qwen3_asr_server.messages import Event, Finish
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.admission import Admission, Refused
from qwen3_asr_server.runtime.alarm import Clock
from qwen3_asr_server.runtime.aligning import AlignerDesk
from qwen3_asr_server.runtime.from_settings import engines_of, live_options, scheduler_options, session_options
from qwen3_asr_server.runtime.in_flight import InFlight
from qwen3_asr_server.runtime.live import LiveSession, Workers
from qwen3_asr_server.runtime.models import ModelNames
from qwen3_asr_server.runtime.offline import Media, Progress, Recording, no_progress, transcribe
from qwen3_asr_server.runtime.outbox import OutboxOptions
from qwen3_asr_server.runtime.pool import Pool, PoolOptions, PoolStatus
from qwen3_asr_server.runtime.recordings import Recordings
from qwen3_asr_server.runtime.scheduler import StepScheduler
from qwen3_asr_server.runtime.telemetry import Latencies
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.languages import demand_known
from qwen3_asr_server.text.transcript import Transcript
from qwen3_asr_server.vad import load_vad
from qwen3_asr_server.vad._base import VadModel
from qwen3_asr_server.vad._batcher import VadBatcher

_log = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "draining", "stopped"]
Status = Literal["loading", "ready", "full", "restarting", "failed", "draining", "stopped"]

_CONNECTIONS_PER_SESSION: Final = 4
"""Connections that need no session at once, for each session that there may be."""

_REASONS: Final[dict[Status, str]] = {
    "loading": "The engine is loading.",
    "full": "No session, or no recognition capacity, is free.",
    "restarting": "The engine has died and is started again.",
    "failed": "Recognition has failed; the log of the server has the details.",
    "draining": "The server is shutting down.",
    "stopped": "The server is shutting down.",
}


class Services:
    """The runtime of one server.

    Args:
        settings: how it is configured.
        engine: used instead of the one the settings name.
        vad: used instead of Silero.
        aligner: used instead of the one the settings name; started only for an engine without word times.
        clock: seconds, monotonic, at the rate of the event loop's clock.

    Raises:
        EngineNotReady: the named engine does not exist or cannot be imported.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Engine | None = None,
        vad: VadModel | None = None,
        aligner: Aligner | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._engines = {engine.info.model: engine} if engine else engines_of(settings)
        self._vad = vad
        self._clock = clock
        self._started_at = clock()
        self._lazy = settings.model_loading == "lazy"
        self._workers: Workers | None = None
        self._live = InFlight[LiveSession]()
        self._latencies = Latencies()
        self.state: State = "loading"
        self.metrics = Metrics()
        self.aligner = self._aligner_desk(aligner)
        self.models = ModelNames({name: engine.info for name, engine in self._engines.items()})
        idle_unload_s = settings.idle_unload_s if self._lazy else 0.0
        self.pool = Pool(self._engines, PoolOptions(idle_unload_s), self.metrics, clock, self._died, self.aligner)
        self.admission = Admission(settings.max_sessions, settings.max_sessions_per_key)
        self.connections = Admission(_CONNECTIONS_PER_SESSION * settings.max_sessions, what="connections")
        self.recordings = Recordings(settings.max_recordings, self.metrics)
        self.outbox_options = OutboxOptions(settings.outbox_messages, settings.send_timeout_s)
        self.metrics.sessions_open.set_function(lambda: self.admission.in_use)
        self.metrics.buffered_audio_seconds.set_function(lambda: self._buffered_s)

    @property
    def engine_info(self) -> EngineInfo:
        """What the engine is and can do with the default model; known before it is loaded."""
        return self.info_of(self.models.default)

    def info_of(self, model: str) -> EngineInfo:
        """Return what the engine is and can do with a model, by its name in `models`."""
        info = self._engines[model].info
        return replace(info, word_times=info.word_times or self.aligner is not None)

    @property
    def vad_name(self) -> str:
        """Which detector runs."""
        return self._vad.name if self._vad is not None else "silero"

    @property
    def status(self) -> Status:
        """What newcomers find: the state, or why a server that works would not serve them now.

        An engine that could not be loaded is tried again for each newcomer, so its failure may pass; and one that is
        not loaded is ready, as it is loaded for them.
        """
        if self.state != "ready":
            return self.state
        match self.pool.status().phase:
            case "loading" | "restarting" | "failed" as phase:
                return phase
            case _:
                full = self._crowded or self.admission.full or not self.pool.leases.possible(self.models.default)
                return "full" if full else "ready"

    @property
    def reason(self) -> str | None:
        """Why a new session would not be served, in a sentence for everybody; None when it would."""
        return _REASONS.get(self.status)

    @property
    def ready(self) -> bool:
        """Whether a new session would be served."""
        return self.status == "ready"

    async def start(self) -> None:
        """Load the VAD and, unless loading is lazy, the engine.

        Raises:
            EngineError: with a reason a user can act upon; the server cannot work.
        """
        try:
            if self._vad is None:
                self._vad = await asyncio.to_thread(load_vad)
            self._workers = self._start_workers(self._vad)
            self.pool.start(self._workers.scheduler)
            if not self._lazy:
                await self.pool.load()
        except Exception:
            self.state = "failed"
            raise
        if self.state == "loading":
            self.state = "ready"
        info = self.engine_info
        _log.info("ready", extra={"engine": info.name, "model": info.model, "vad": self.vad_name, "lazy": self._lazy})

    async def stop(self) -> None:
        """End what still lives and release everything. Safe to call twice, or without `start`."""
        self._admit_nobody()
        self._end_all("shutdown", ShuttingDown("The server is shutting down."))
        workers, self._workers = self._workers, None
        if workers is not None:
            await workers.scheduler.stop()
            workers.vad.stop()
        await self.pool.stop()
        if self.state != "failed":
            self.state = "stopped"

    async def drain(self, timeout_s: float | None = None) -> None:
        """Admit nobody any more, and let every live session get its finals and every recording come to its end.

        Args:
            timeout_s: after this long what still lives is ended; None takes the setting.
        """
        if self.state in ("loading", "ready"):
            self.state = "draining"
        self._admit_nobody()
        _log.info("draining", extra={"sessions": len(self._live), "recordings": len(self.recordings)})
        try:
            async with asyncio.timeout(self._settings.shutdown_timeout_s if timeout_s is None else timeout_s):
                async with asyncio.TaskGroup() as group:
                    for live in self._live:
                        group.create_task(live.submit(Finish()))
                await self._live.all_over()
                await self.recordings.all_over()
        except TimeoutError:
            left = {"sessions": len(self._live), "recordings": len(self.recordings)}
            _log.warning("not all finished in time", extra=left)
            self._end_all("shutdown", ShuttingDown("The server is shutting down."))

    async def room_for(self, model: str) -> None:
        """Wait until nobody uses another model, so that a session of this one can begin.

        Raises:
            Overloaded: that took too long, or the server is shutting down.
        """
        with self._refusals_counted():
            await self.pool.leases.room_for(model)

    @contextmanager
    def admit_connection(self) -> Iterator[None]:
        """Admit, for the length of the `with` block, a connection that may ask for sessions later.

        Raises:
            Overloaded: there are too many, or the server is shutting down.
        """
        with self._refusals_counted(), self.connections.admit():
            yield

    @contextmanager
    def open_session(
        self,
        config: SessionConfig,
        emit: Callable[[Event], None],
        *,
        key_id: str | None = None,
        model: str | None = None,
    ) -> Iterator[LiveSession]:
        """Admit a session for the length of the `with` block; whoever opens it also runs it.

        Args:
            config: how the session begins.
            emit: takes its events; called on the event loop, must not block.
            key_id: which key opened the door, for the limit a key.
            model: by its name in `models`; None is the default. It stays loaded while the block runs.

        Raises:
            Overloaded: full, shutting down, another model is in use, or the server does not work.
        """
        with self._refusals_counted(), self.admission.admit(key_id):
            yield from self._serve(config, emit, model or self.models.default)

    @contextmanager
    def open_recording(
        self,
        media: Media,
        options: TranscribeOptions,
        progress: Progress = no_progress,
        *,
        model: str | None = None,
    ) -> Iterator[Recording]:
        """Admit a recording for the length of the `with` block; whoever opens it also iterates its segments.

        Args:
            media: its audio.
            options: what is wanted of it; who leaves `turn_detection` as it is gets the threshold of the settings.
            progress: told now and then how far it has come; called on the event loop, must not block.
            model: by its name in `models`; None is the default. It stays loaded while the block runs.

        Raises:
            Overloaded: full, shutting down, another model is in use, or the server does not work.
            InvalidValue: the model does not know the language.
        """
        name = model or self.models.default
        demand_known(options.language, self.info_of(name).languages, "language")
        if options.turn_detection == TurnDetection():
            options = replace(options, turn_detection=TurnDetection(threshold=self._settings.vad_threshold))
        with self._refusals_counted(), self.recordings.admit(), self.pool.lease(name):
            session = self._session_options(name)
            recording = Recording(self._ready_workers(), media, options, session, progress)
            with self.recordings.watch(recording):
                yield recording

    async def transcribe(
        self,
        media: Media,
        options: TranscribeOptions,
        progress: Progress = no_progress,
        *,
        model: str | None = None,
    ) -> Transcript:
        """Return the transcript of a recording; arguments and errors as for `open_recording`.

        Raises:
            AsrServerError: the audio cannot be read, or recognition failed.
        """
        with self.open_recording(media, options, progress, model=model) as recording:
            return await transcribe(recording)

    def stats(self) -> dict[str, object]:
        """Return the numbers for `/stats`."""
        return {
            "state": self.state,
            "uptime_s": round(self._clock() - self._started_at, 1),
            "sessions": {"open": self.admission.in_use, "max": self._settings.max_sessions},
            "recordings": {"open": len(self.recordings), "max": self._settings.max_recordings},
            "buffered_audio_s": round(self._buffered_s, 1),
            "latency": self._latencies.summary(),
            "scheduler": self._workers.scheduler.stats() if self._workers else {},
            "engine": self.engine_info.name,
            "engine_counters": dict(self.pool.stats()),
            "model": self.model_status(),
            "vad": self.vad_name,
        }

    def model_status(self) -> dict[str, object]:
        """Return for people which model is loaded, or how far that has come."""
        status: PoolStatus = self.pool.status()
        return asdict(status) | {"since_s": round(status.since_s, 1)}

    # Parts

    def _start_workers(self, vad: VadModel) -> Workers:
        batcher = VadBatcher(vad, on_batch=self._note_batch)
        batcher.start()
        options = scheduler_options(self._settings, self.engine_info)
        scheduler = StepScheduler(options, self.metrics, self._clock, self._died)
        scheduler.on_crash = self.pool.look
        scheduler.start()
        return Workers(batcher, scheduler, self.metrics, self._latencies, self._clock, self.aligner)

    def _aligner_desk(self, given: Aligner | None) -> AlignerDesk | None:
        """Return who places words, if that is wanted and the engine does not do it itself."""
        settings = self._settings
        if all(engine.info.word_times for engine in self._engines.values()):
            return None
        if given is None and settings.word_times:
            given = load_aligner(AlignerOptions(settings.aligner_model_path, settings.model_dtype))
        return None if given is None else AlignerDesk(given, self.metrics, self._clock)

    def _died(self) -> None:
        """Serve nobody any more: without scheduler or pool no session would ever hear a thing."""
        self.state = "failed"
        self._end_all("error", InternalError("Recognition has failed on the server."))

    @property
    def _crowded(self) -> bool:
        return self._workers is not None and self._workers.scheduler.crowded

    # Sessions

    @contextmanager
    def _refusals_counted(self) -> Iterator[None]:
        try:
            yield
        except Overloaded as refusal:
            reason = refusal.reason if isinstance(refusal, Refused) else "shutdown"
            self.metrics.sessions_refused.labels(reason).inc()
            raise

    def _serve(self, config: SessionConfig, emit: Callable[[Event], None], model: str) -> Iterator[LiveSession]:
        workers = self._ready_workers()
        if self._crowded:
            raise Refused("No recognition capacity is free; try again later.", reason="crowded")
        with self.pool.lease(model):
            options = live_options(self._settings, self._session_options(model))
            live = LiveSession(config, options, workers, emit)
            with self._live.hold(live):
                try:
                    yield live
                finally:
                    live.end("aborted")

    def _ready_workers(self) -> Workers:
        if self._workers is None or self.state == "failed":
            raise Refused("The server is not ready; try again later.", reason="not_ready")
        return self._workers

    def _admit_nobody(self) -> None:
        self.admission.close()
        self.connections.close()
        self.recordings.close()

    def _session_options(self, model: str) -> SessionOptions:
        language = self.info_of(model).default_language
        return session_options(self._settings, language, align_words=self.aligner is not None)

    def _end_all(self, reason: str, error: AsrServerError) -> None:
        for live in self._live:
            live.end(reason, error)
        self.recordings.end_all(error)

    def _note_batch(self, rows: int, seconds: float) -> None:
        self.metrics.vad_batch_rows.observe(rows)
        self.metrics.vad_batch_seconds.observe(seconds)

    @property
    def _buffered_s(self) -> float:
        return sum(live.buffered_samples for live in self._live) / SAMPLE_RATE
