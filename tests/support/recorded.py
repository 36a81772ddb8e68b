"""Recordings in memory, and what transcribes them in virtual time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen3_asr_server.domain import SAMPLE_RATE, Samples
from qwen3_asr_server.engines._base import Engine
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.aligning import AlignerDesk
from qwen3_asr_server.runtime.live import Workers
from qwen3_asr_server.runtime.offline import Recording, transcribe
from qwen3_asr_server.runtime.scheduler import SchedulerOptions, StepScheduler
from qwen3_asr_server.runtime.telemetry import Latencies
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.transcript import Transcript
from support.clock import clock
from support.live import DirectVad


@dataclass
class MemoryMedia:
    """Audio that is all there, float32 [channels, n] or [n], read a block at a time."""

    audio: Samples
    block_s: float = 1.0
    times: int = 1
    """How often the audio is repeated."""
    known: bool = True
    """Whether it says how long it is."""
    cut_short: bool = False
    read: int = 0
    """Samples read so far."""

    def __post_init__(self) -> None:
        self.audio = np.atleast_2d(self.audio)

    @property
    def channels(self) -> int:
        return len(self.audio)

    @property
    def duration_s(self) -> float | None:
        return self.audio.shape[1] * self.times / SAMPLE_RATE if self.known else None

    async def blocks(self) -> AsyncIterator[Samples]:
        size = max(1, round(self.block_s * SAMPLE_RATE))
        for _ in range(self.times):
            for start in range(0, self.audio.shape[1], size):
                block = self.audio[:, start : start + size]
                self.read += block.shape[1]
                yield block


@dataclass
class Studio:
    """What transcribes recordings."""

    workers: Workers
    scheduler: StepScheduler
    vad: DirectVad
    metrics: Metrics
    progress: list[tuple[float, float | None]] = field(default_factory=list)

    async def transcribe(self, audio: Any, session: SessionOptions | None = None, **options: Any) -> Transcript:
        media = audio if isinstance(audio, MemoryMedia) else MemoryMedia(audio)
        note = self.progress.append
        session = session or SessionOptions(align_words=True)
        wanted = TranscribeOptions(**options)
        return await transcribe(Recording(self.workers, media, wanted, session, lambda *at: note(at)))


@asynccontextmanager
async def studio(
    engine: Engine, *, scheduling: SchedulerOptions | None = None, aligner: Any = None
) -> AsyncIterator[Studio]:
    """Run a scheduler and a detector; afterwards nothing is held by anybody, and no task is left."""
    await engine.start()
    metrics, vad = Metrics(), DirectVad()
    scheduler = StepScheduler(scheduling or SchedulerOptions(), metrics, clock)
    scheduler.start()
    scheduler.engine_ready(engine)
    desk = AlignerDesk(aligner, metrics, clock) if aligner is not None else None
    if desk is not None:
        await desk.start()
    workers: Any = Workers(vad, scheduler, metrics, Latencies(), clock, desk)  # type: ignore[arg-type]
    try:
        yield Studio(workers, scheduler, vad, metrics)
    finally:
        assert vad.open_streams == 0
        stats = scheduler.stats()
        assert stats["recorded_waiting"] == 0
        await scheduler.stop()
        if desk is not None:
            await desk.stop()
        stats = scheduler.stats()
        assert not any(stats[name] for name in ("recorded_running", "finals_running", "open_streams"))
        assert asyncio.all_tasks() == {asyncio.current_task()}


def tones(*parts: tuple[float, float]) -> Samples:
    """Return float32 audio of `(seconds, loudness)` stretches."""
    return np.concatenate([np.full(round(s * SAMPLE_RATE), loud, np.float32) for s, loud in parts])
