"""The embedded engine: PocketSphinx, English, on the processor, with the weights inside its wheel.

It exists so that the server can be seen working on any machine, and so that tests run a real recogniser; its
accuracy is that of 2010. Decoders live in child processes (`_pocketsphinx_worker`), shared by a pool; a stream
sends its decoder only audio that it has not heard, and all of it again when the decoder was taken away or died.
Knows nothing about sessions or settings; made by `load_engine("pocketsphinx", options)`.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from qwen3_asr_server.audio.pcm import encode_s16le
from qwen3_asr_server.domain import SAMPLE_RATE, EngineInfo, Hypothesis, Samples, StepKind, StreamOptions, Word
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._pocketsphinx_pool import DecoderPool, Slot
from qwen3_asr_server.engines._pocketsphinx_process import WORKER, DecoderProcess
from qwen3_asr_server.engines._pocketsphinx_wire import Ask, Report
from qwen3_asr_server.errors import EngineError, EngineNotReady, InvalidValue

LANGUAGE: Final = "en"
FRAME_SAMPLES: Final = SAMPLE_RATE // 100


@dataclass(frozen=True, slots=True)
class Timing:
    """Deadlines and intervals, in seconds."""

    step_s: float
    """Longest step, besides `step_per_audio`."""
    wait_s: float
    """Longest wait of a final for a decoder."""
    step_per_audio: float = 0.5
    """Seconds more for each second of audio that the decoder has not heard."""
    start_s: float = 30.0
    """Longest start of a decoder process."""
    reclaim_after_s: float = 2.0
    """A stream without a step for this long may lose its decoder to another one's partials."""


class PocketSphinxEngine:
    """PocketSphinx behind the engine interface.

    Args:
        options: `max_decoders` bounds the processes, about 100 MB each; of the rest only the deadlines are read.
        timing: deadlines and intervals, instead of those of the options.
        command: the program that decodes.
        clock: seconds, monotonic; decides when a lease counts as idle.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        timing: Timing | None = None,
        command: tuple[str, ...] = WORKER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._timing = timing or Timing(options.decode_timeout_s, options.queue_timeout_s)
        self._command = command
        self._clock = clock
        self._pool: DecoderPool | None = None

    @property
    def info(self) -> EngineInfo:
        """What it is good for, and what not."""
        return EngineInfo(
            name="pocketsphinx",
            model="CMU Sphinx en-us",
            description="A small English-only recogniser for seeing the server work; about one word in four is wrong, "
            "it is not for production.",
            languages=frozenset({LANGUAGE}),
            default_language=LANGUAGE,
            production=False,
            word_times=True,
            max_streams=self._options.max_decoders,
        )

    @property
    def decoder_pids(self) -> list[int]:
        """Ids of the running decoder processes."""
        return self._pool.pids if self._pool else []

    async def start(self) -> None:
        """Start the first decoder and let it hear a little silence.

        Raises:
            EngineNotReady: PocketSphinx is not installed, or its decoder does not work here.
        """
        if self._pool is not None:
            return
        if importlib.util.find_spec("pocketsphinx") is None:
            raise EngineNotReady("the package 'pocketsphinx' is not installed")
        self._pool = DecoderPool(
            self._options.max_decoders,
            lambda: DecoderProcess(self._command),
            start_timeout_s=self._timing.start_s,
            wait_timeout_s=self._timing.wait_s,
            reclaim_after_s=self._timing.reclaim_after_s,
            clock=self._clock,
        )
        try:
            stream = self.open_stream(StreamOptions())
            await stream.step(np.zeros(SAMPLE_RATE // 2, np.float32), StepKind.FINAL)
        except EngineError as problem:
            await self.stop()
            raise EngineNotReady(f"the embedded decoder does not work here: {problem.message}") from problem

    async def stop(self) -> None:
        """End all decoder processes; open streams fail."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def open_stream(self, options: StreamOptions) -> "PocketSphinxStream":
        """Begin a piece.

        Args:
            options: the context is ignored; the language may only be English.

        Raises:
            EngineNotReady: not started, or stopped.
            InvalidValue: a language other than English.
        """
        if self._pool is None:
            raise EngineNotReady("the engine is not running")
        if options.language not in (None, LANGUAGE):
            raise InvalidValue("this engine understands only English ('en')", param="language")
        return PocketSphinxStream(self._pool, self._timing, recorded=options.recorded)


class PocketSphinxStream:
    """One piece: remembers how much of it its decoder has heard."""

    def __init__(self, pool: DecoderPool, timing: Timing, *, recorded: bool = False) -> None:
        self._pool = pool
        self._timing = timing
        self._recorded = recorded
        self._lease = 0
        self._heard = 0

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        """Decode the piece so far, see `EngineStream.step`."""
        slot = await self._pool.lend(self, kind, recorded=self._recorded)
        if slot is None:
            return None
        try:
            report = await self._decode(slot, audio, finish=kind is StepKind.FINAL)
        finally:
            if kind is StepKind.FINAL:
                self._pool.give_back(self)
            self._pool.done(slot)
        return _hypothesis(report, len(audio), final=kind is StepKind.FINAL)

    async def close(self) -> None:
        """Give the decoder back."""
        self._pool.give_back(self)

    async def _decode(self, slot: Slot, audio: Samples, *, finish: bool) -> Report:
        known = slot.lease == self._lease and self._heard <= len(audio)
        new = audio[self._heard :] if known else audio
        wish = (Ask.NOTHING if known else Ask.RESTART) | (Ask.FINISH if finish else Ask.NOTHING)
        allowance_s = self._timing.step_s + self._timing.step_per_audio * len(new) / SAMPLE_RATE
        # Until it answers, nobody knows what the decoder has heard: after a failure all is said again.
        self._lease = 0
        report = await slot.process.ask(wish, encode_s16le(new), allowance_s)
        if not finish:
            self._lease, self._heard = slot.lease, len(audio)
        return report


def auto_reason(options: EngineOptions) -> str | None:
    """Say why `ENGINE=auto` may take this engine: it runs everywhere."""
    return "no better engine can run here; for seeing the server work, not for production"


def _hypothesis(report: Report, samples: int, *, final: bool) -> Hypothesis:
    words = []
    end = 0
    for text, first_frame, last_frame, posterior in report.words:
        start = min(max(end, first_frame * FRAME_SAMPLES), samples)
        end = min(max(start, (last_frame + 1) * FRAME_SAMPLES), samples)
        words.append(Word(text, start, end, posterior))
    posteriors = [word.confidence for word in words if word.confidence is not None]
    return Hypothesis(
        text=report.text,
        language=LANGUAGE,
        words=tuple(words),
        confidence=sum(posteriors) / len(posteriors) if posteriors else None,
        final=final,
    )


ENGINE = PocketSphinxEngine
