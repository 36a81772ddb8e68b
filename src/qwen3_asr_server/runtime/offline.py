"""Recorded audio, of any length, to a transcript: what every door for files calls.

    media ─▶ blocks ─▶ cutter and detector ─▶ pieces ─▶ lane of the scheduler ─▶ aligner ─▶ segments, in order

The pieces are those of a live session (`session/cuts.py`). They are decoded side by side, behind everything live, and
told in order; at most `MAX_PIECES` wait for their texts, so that memory does not grow with the length. A piece that
fails, or was in an engine when that died, is tried again a few times; then the recording fails, as a hole in a text
shows nothing.

A `Recording` has no task of its own: whoever iterates drives it. Knows no files (`media.py` reads them), no formats and
no HTTP. Made by the services.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Final, Protocol

from qwen3_asr_server.domain import SAMPLE_RATE, Hypothesis, Samples, StepKind, Word
from qwen3_asr_server.errors import AsrServerError, InternalError
from qwen3_asr_server.messages import Align, Aligned, Decode, DecodeFailed, Heard, Lost, Outcome
from qwen3_asr_server.runtime.incidents import internal_error
from qwen3_asr_server.runtime.lanes import Lane
from qwen3_asr_server.runtime.live import Workers
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.recognition import Offer
from qwen3_asr_server.session.recorded import RecordedPiece, RecordedTrack, TranscribeOptions
from qwen3_asr_server.text.transcript import Segment, Transcript
from qwen3_asr_server.vad._base import Floats
from qwen3_asr_server.vad._batcher import VadStream

MAX_PIECES: Final = 16
"""Pieces of a recording whose texts are awaited: at most 30 MB of audio. It is read no further meanwhile."""
RETRY_AFTER_S: Final = (2.0, 15.0)
"""Pauses before a piece that failed is decoded again; after that many the recording fails. One that was lost with its
engine is handed in at once, and waits for the next engine at the scheduler."""
_SCORE_TIMEOUT_S: Final = 60.0

_log = logging.getLogger(__name__)

Progress = Callable[[float, float | None], None]
"""Takes the seconds that are done and those there are in all, None while nobody knows. Must not block."""


def no_progress(done_s: float, total_s: float | None) -> None:
    """Tell nobody."""


class Media(Protocol):
    """Audio that is read bit by bit."""

    @property
    def channels(self) -> int:
        """How many are kept apart."""
        ...

    @property
    def duration_s(self) -> float | None:
        """Length by its own account; None where it gives none."""
        ...

    @property
    def cut_short(self) -> bool:
        """Whether it ended before it should; known after the last block."""
        ...

    def blocks(self) -> AsyncIterator[Samples]:
        """Yield float32 [channels, n], 16 kHz, in [-1, 1], about a second each."""
        ...


class Recording:
    """The transcription of one recording. Iterate `segments` once; `close` gives back what an unfinished one holds.

    Args:
        workers: VAD, engine, aligner and time.
        media: the audio.
        options: what is wanted.
        session: the rules by which live sessions cut, and this one too.
        progress: told now and then how far it has come.

    Attributes:
        received: samples read so far; when all segments were told, the length of the recording.
        pieces: how many were handed in to be decoded; none means that nobody spoke.
        finished: whether all segments were told.
    """

    def __init__(
        self,
        workers: Workers,
        media: Media,
        options: TranscribeOptions,
        session: SessionOptions | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self._workers = workers
        self._media = media
        self._options = options
        self._progress = progress
        session = session or SessionOptions()
        self._aligner = workers.aligner if options.words and session.align_words else None
        self._tracks = [RecordedTrack(number, options, session) for number in range(media.channels)]
        self._vad: list[VadStream] = []
        self._lane: Lane | None = None
        self._decodes: dict[int, tuple[RecordedPiece, Decode]] = {}
        self._retries: dict[int, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()
        self._failure: AsrServerError | None = None
        self._closed = False
        self.received = 0
        self.pieces = 0
        self.finished = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Those that are kept apart, in order."""
        return tuple(track.channel for track in self._tracks)

    @property
    def cut_short(self) -> bool:
        """Whether the audio ended before it should; known when all segments were told."""
        return self._media.cut_short

    async def segments(self) -> AsyncGenerator[Segment]:
        """Yield each segment as soon as it and all before it are there: of each channel, and by their pieces.

        Raises:
            ClientError: the audio cannot be read, or an option does not suit the engine.
            AsrServerError: recognition failed, or was ended.
        """
        self._open()
        blocks = self._media.blocks()
        try:
            async for block in blocks:
                await self._hear(block)
                while found := await self._next(MAX_PIECES):
                    for segment in found:
                        yield segment
            for track in self._tracks:
                track.finish()
            await self._score()
            while found := await self._next(1):
                for segment in found:
                    yield segment
            self.finished = True
            self._tell_progress(over=True)
        finally:
            self.close()
            if isinstance(blocks, AsyncGenerator):
                await blocks.aclose()

    def end(self, error: AsrServerError) -> None:
        """Stop now; `segments` raises the error at its next turn."""
        self._failure = self._failure or error
        self._changed.set()
        self.close()

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        self._closed = True
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.detach()
        for stream in self._vad:
            stream.close()
        if self._aligner is not None:
            self._aligner.forget(self._placed)
        for timer in self._retries.values():
            timer.cancel()
        self._decodes.clear()

    # What the scheduler calls

    def offer(self) -> Offer | None:
        """Offer no partials: nobody would see them."""
        return None

    def pull(self, now: float) -> Decode | None:
        """Give no partials."""
        return None

    def deliver(self, outcome: Outcome) -> None:
        """Take in the answer to a decode."""
        with self._guarded():
            match outcome:
                case Heard(piece=number, hypothesis=hypothesis):
                    self._heard(number, hypothesis)
                case DecodeFailed(piece=number, error=error):
                    self._failed(number, error, lost=False)
                case Lost(piece=number, error=error):
                    self._failed(number, error, lost=True)
                case _:
                    raise AssertionError("only finals are asked for")
            self._go_on()

    # Audio

    def _open(self) -> None:
        self._check()
        assert not self._closed, "a recording is transcribed once"
        self._vad = [self._workers.vad.open() for _ in self._tracks]
        self._lane = self._workers.scheduler.attach(self)

    async def _hear(self, block: Samples) -> None:
        """Cut a block, and hand in the pieces that have ended."""
        self.received += block.shape[1]
        for track, samples in zip(self._tracks, block, strict=True):
            track.append(samples)
        await self._score()

    async def _score(self) -> None:
        for track, stream in zip(self._tracks, self._vad, strict=True):
            while (frames := track.frames_to_score()) is not None:
                track.scored(await self._scores_of(frames, stream))
        self._go_on()

    async def _scores_of(self, frames: Floats, stream: VadStream) -> Floats:
        self._check()
        try:
            async with asyncio.timeout(_SCORE_TIMEOUT_S):
                return await stream.score(frames)
        except TimeoutError:
            raise InternalError("Voice activity detection did not answer in time.") from None
        except AsrServerError:
            self._check()  # it was closed because the recording was ended
            raise

    # Pieces

    def _go_on(self) -> None:
        """Hand in every piece that can be decoded now, and let the one who iterates look anew."""
        for track in self._tracks:
            for piece, options in track.due():
                piece.number = self.pieces
                self.pieces += 1
                cut = piece.cut
                decode = Decode(track.channel, piece.number, StepKind.FINAL, cut.start, cut.end, cut.audio, options)
                self._decodes[piece.number] = (piece, decode)
                self._submit(decode)
        self._changed.set()

    def _submit(self, decode: Decode) -> None:
        if self._lane is not None:
            self._lane.submit(decode)

    def _heard(self, number: int, hypothesis: Hypothesis) -> None:
        assert self._lane is not None, "nothing is delivered to a lane that was given up"
        self._lane.release(number)
        piece, decode = self._decodes[number]
        piece.hypothesis = hypothesis
        if self._aligner is None or hypothesis.words or not hypothesis.text:
            self._settle(number, hypothesis.words)
            return
        language = hypothesis.language or self._options.language
        job = Align(number, decode.upto, decode.audio, hypothesis.text, language)
        self._aligner.submit(job, self._placed, recorded=True)

    def _placed(self, aligned: Aligned) -> None:
        with self._guarded():
            if aligned.piece in self._decodes:
                self._settle(aligned.piece, aligned.words)
                self._go_on()

    def _settle(self, number: int, words: Sequence[Word]) -> None:
        piece, _ = self._decodes.pop(number)
        piece.settle(words)

    def _failed(self, number: int, error: AsrServerError, *, lost: bool) -> None:
        piece, decode = self._decodes[number]
        if piece.failures >= len(RETRY_AFTER_S) or not error.retryable:
            self._failure = self._failure or error
            return
        pause_s = 0.0 if lost else RETRY_AFTER_S[piece.failures]
        piece.failures += 1
        self._retries[number] = asyncio.get_running_loop().call_later(pause_s, self._submit, decode)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let a fault of ours end this recording: it would be lost in whoever calls, and waited for here for ever."""
        try:
            yield
        except Exception:  # noqa: BLE001 - the boundary of a recording
            self.end(internal_error(_log, "recording failed"))

    # Segments

    async def _next(self, most: int) -> list[Segment]:
        """Return the next segments; none as soon as none is ready and fewer than so many pieces are incomplete."""
        while True:
            self._changed.clear()
            self._check()
            found = list(self._ready())
            self._tell_progress()
            if found or sum(track.incomplete for track in self._tracks) < most:
                return found
            await self._changed.wait()  # scheduler and aligner keep the deadlines: each piece is answered some day

    def _ready(self) -> Iterator[Segment]:
        """Take out the segments whose turn has come: nothing can begin before them any more."""
        while True:
            first = min(self._tracks, key=lambda track: track.earliest, default=None)
            if first is None or not first.first_is_complete:
                return
            segment = first.take_first()
            if segment is not None:
                yield segment

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _tell_progress(self, *, over: bool = False) -> None:
        done = self.received if over else min([self.received, *(track.earliest for track in self._tracks)])
        total_s = self.received / SAMPLE_RATE if over else self._media.duration_s
        done_s = done / SAMPLE_RATE
        self._progress(done_s, total_s if total_s is None else max(total_s, done_s))


async def transcribe(recording: Recording, heard: Callable[[Segment], Awaitable[None]] | None = None) -> Transcript:
    """Transcribe a recording to its end: the one way that every door and every job goes.

    Args:
        recording: one that nobody has iterated.
        heard: given each segment as soon as it is known; the recording is read no further meanwhile.

    Raises:
        ClientError: the audio cannot be read, or an option does not suit the engine.
        AsrServerError: recognition failed, or was ended.
    """
    found: list[Segment] = []
    async with aclosing(recording.segments()) as segments:
        async for segment in segments:
            found.append(segment)
            if heard is not None:
                await heard(segment)
    ordered = tuple(sorted(found, key=lambda segment: segment.start))
    return Transcript(ordered, recording.received, recording.cut_short, recording.channels)
