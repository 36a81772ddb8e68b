"""One realtime session in operation: the only driver of a `SessionMachine`.

    commands ─▶ decoder ─▶ machine ─▶ events ─▶ the connection's `emit`
                             │ ▲
                 ScoreFrames │ │ Scored            Decode, Release, offers │ ▲ pulls, Heard, Skipped, …
                             ▼ │                                           ▼ │
                          VadStream                                   Lane of the scheduler

Every input is followed by exactly one pump: events out, jobs to the workers. All of it happens on the event
loop between two awaits, so there is no lock around the machine. Frames go straight to the detector, decodes to the
scheduler. It knows no protocol and no socket. Made by the services, driven by the WebSocket loop.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, assert_never

from qwen3_asr_server import messages
from qwen3_asr_server.audio.decoder import StreamDecoder
from qwen3_asr_server.domain import SAMPLE_RATE, SessionConfig
from qwen3_asr_server.errors import AsrServerError, IdleTimeout, InvalidAudio
from qwen3_asr_server.messages import Command, Event, Job, Outcome
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.alarm import Alarm, Clock
from qwen3_asr_server.runtime.aligning import AlignerDesk
from qwen3_asr_server.runtime.incidents import internal_error
from qwen3_asr_server.runtime.scheduler import StepScheduler
from qwen3_asr_server.runtime.telemetry import Latencies, Telemetry
from qwen3_asr_server.session.machine import SessionMachine
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.recognition import Offer
from qwen3_asr_server.vad._base import Floats
from qwen3_asr_server.vad._batcher import VadBatcher

_log = logging.getLogger(__name__)

_SCORE_TIMEOUT_S: Final = 60.0
"""A detector that is merely overloaded is a reason to read more slowly, not to end sessions."""

SLICE_SAMPLES: Final = 8 * SAMPLE_RATE
"""Most audio that a session takes in without a pause for others; half a megabyte, copied in well under 1 ms."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """Limits of a session."""

    session: SessionOptions
    """Those of its machine."""
    max_append_s: float = 1200.0
    """Most audio in one append."""
    buffer_high_s: float = 60.0
    """Unheard audio above which `room` waits."""
    buffer_low_s: float = 30.0
    """Unheard audio at which it goes on."""
    max_waiting_commands: int = 32
    """Commits and the like whose audio has not been judged yet, above which `room` waits."""
    log_transcripts: bool = False


@dataclass(frozen=True, slots=True)
class Workers:
    """What all sessions share."""

    vad: VadBatcher
    scheduler: StepScheduler
    metrics: Metrics
    latencies: Latencies
    clock: Clock
    aligner: AlignerDesk | None = None
    """None where the engine gives word times itself, or nobody gives them."""


class LiveSession:
    """Drive one session from its first command to its last event.

    Args:
        config: how it begins.
        options: limits.
        workers: VAD, engine, metrics and time.
        emit: takes every event; called on the event loop, must not block.
    """

    def __init__(
        self, config: SessionConfig, options: LiveOptions, workers: Workers, emit: Callable[[Event], None]
    ) -> None:
        self._options = options
        self._clock = workers.clock
        self._emit = emit
        self._config = config
        self._machine = SessionMachine(config, options.session, self._clock())
        self._decoder = StreamDecoder(config.audio, max_append_s=self._options.max_append_s)
        self._vad = workers.vad.open()
        self._lane = workers.scheduler.attach(self)
        self._aligner = workers.aligner
        self._telemetry = Telemetry(workers.metrics, workers.latencies)
        self._alarm = Alarm(self._clock, self._look_at_clock)
        self._in_order = asyncio.Lock()
        self._ended = asyncio.Event()
        self._room = asyncio.Event()
        self._scoring: messages.ScoreFrames | None = None
        self._score_by = 0.0
        self._epoch = 0
        self._decoding: set[int] = set()
        self._paused = False
        self._reason: str | None = None
        self._alarm.set(self._machine.next_timeout())

    # What the connection calls

    async def run(self) -> None:
        """Wait until the session is over; then everything it held is given back, also when cancelled."""
        _log.info("session opened")
        try:
            await self._ended.wait()
        finally:
            self._over("aborted")
            assert self._reason is not None
            machine = self._machine
            self._telemetry.closed(
                self._reason, stale_outcomes=machine.stale_outcomes, words_missed=machine.words_missed
            )

    async def submit(self, command: Command) -> None:
        """Obey a command, after those submitted before. Ignored once the session is over."""
        async with self._in_order:
            with self._guarded():
                if not self.over:
                    await self._obey(command)
                    self._pump()

    async def room(self) -> None:
        """Wait while too much audio is unheard, or too many commands wait for their place in it.

        Returns at once when nothing runs that would free room: what the machine waits for must then come from
        the client.
        """
        full = self.buffered_samples / SAMPLE_RATE > self._options.buffer_high_s or self._too_many_commands
        if not full or self._may_read:
            return
        self._paused = True
        try:
            while not self._may_read:
                self._room.clear()
                await self._room.wait()
        finally:
            self._paused = False
            self.touch()

    def touch(self) -> None:
        """Note that the client was heard from."""
        self._machine.touch(self._clock())

    def end(self, reason: str, error: AsrServerError | None = None) -> None:
        """Stop now; `run` returns.

        Args:
            reason: one word for log and metrics; the first one given stands.
            error: what the client is told; None tells it nothing.
        """
        if self.over:
            return
        if error is not None:
            self._tell(messages.Closing(error), reason)
        self._over(reason)

    @property
    def over(self) -> bool:
        """True when nothing follows any more."""
        return self._reason is not None

    @property
    def buffered_samples(self) -> int:
        """Audio received and not heard yet."""
        return 0 if self.over else self._machine.buffered_samples

    # What the scheduler calls

    def offer(self) -> Offer | None:
        """Return the partial that is worth decoding, if any."""
        return None if self.over else self._machine.offer()

    def pull(self, now: float) -> messages.Decode | None:
        """Take the offered partial."""
        decode = None
        with self._guarded():
            decode = None if self.over else self._machine.pull(now)
        if decode is not None:
            self._decoding.add(decode.piece)
        return decode

    def deliver(self, outcome: Outcome) -> None:
        """Take in the answer to a decode."""
        if self.over or isinstance(outcome, messages.Scored | messages.Aligned):
            return
        self._decoding.discard(outcome.piece)
        with self._guarded():
            self._machine.outcome(outcome, self._clock())
            self._pump()

    def placed(self, aligned: messages.Aligned) -> None:
        """Take in the places of words."""
        if not self.over:
            with self._guarded():
                self._machine.outcome(aligned, self._clock())
                self._pump()

    # Commands

    async def _obey(self, command: Command) -> None:
        match command:
            case messages.AppendBytes():
                await self._decode_bytes(command)
                return
            case messages.AppendAudio():
                await self._hear_in_slices(command)
                return
            case messages.Configure(config=config):
                if config.audio != self._config.audio:
                    self._flush_decoder()
                    self._decoder = StreamDecoder(config.audio, max_append_s=self._options.max_append_s)
                self._config = config
            case messages.Commit():
                if self._config.turn_detection is None:  # else it is refused, and the audio goes on behind it
                    self._flush_decoder()
                    self._telemetry.commit(self._clock())
            case messages.Finish():
                self._flush_decoder()
            case messages.Clear():
                self._decoder.drop()
            case messages.Disconnect():
                self._over("disconnected")
            case _:
                assert_never(command)
        self._machine.handle(command, self._clock())

    async def _decode_bytes(self, append: messages.AppendBytes) -> None:
        decode = partial(self._decoder.decode, append.data)
        try:
            samples = await asyncio.to_thread(decode) if self._decoder.is_heavy(append.data) else decode()
        except InvalidAudio as error:
            self._tell(messages.Rejected(error, append.event_id))
        else:
            await self._hear_in_slices(messages.AppendAudio(samples, append.event_id))

    def _flush_decoder(self) -> None:
        try:
            self._hear(messages.AppendAudio(self._decoder.flush()))
        except InvalidAudio as error:
            self._tell(messages.Rejected(error))

    async def _hear_in_slices(self, append: messages.AppendAudio) -> None:
        """Hear long audio a little at a time: others have their turn, and room is waited for, between two slices."""
        self._hear(replace(append, samples=append.samples[:SLICE_SAMPLES]))
        for start in range(SLICE_SAMPLES, len(append.samples), SLICE_SAMPLES):
            self._pump()
            await asyncio.sleep(0)
            await self.room()
            if self.over:
                return
            self._hear(replace(append, samples=append.samples[start : start + SLICE_SAMPLES]))

    def _hear(self, append: messages.AppendAudio) -> None:
        if len(append.samples):
            now = self._clock()
            self._machine.handle(append, now)
            self._telemetry.received(self._machine.received_samples, now)

    # Workers

    def _score(self, job: messages.ScoreFrames) -> None:
        if job.epoch != self._epoch:
            self._epoch = job.epoch
            self._vad.reset()
        self._scoring, self._score_by = job, self._clock() + _SCORE_TIMEOUT_S
        self._vad.submit(job.frames, self._scored)

    def _scored(self, answer: Floats | AsrServerError) -> None:
        if self.over or self._scoring is None:
            return
        with self._guarded():
            if isinstance(answer, AsrServerError):
                raise answer
            job, self._scoring = self._scoring, None
            now = self._clock()
            self._machine.outcome(messages.Scored(job.epoch, answer), now)
            self._telemetry.scored(self._machine.scored_samples, now)
            self._pump()

    def _look_at_clock(self) -> None:
        with self._guarded():
            if self._paused:
                self.touch()  # it is we who do not read
            if self._scoring is not None and self._clock() >= self._score_by:
                raise TimeoutError("voice activity detection did not answer in time")
            self._machine.tick(self._clock())
            self._pump()

    def _pump(self) -> None:
        """Carry out what the last input led to; nothing follows the end, though an answer was on its way."""
        if self.over:
            return
        for event in self._machine.events_to_send():
            self._tell(event)
        if self.over:
            return
        for job in self._machine.jobs_to_run():
            self._hand_out(job)
        self._lane.notify()
        self._alarm.set(self._machine.next_timeout())
        if self._scoring is not None:
            self._alarm.set(self._score_by)
        if self._paused and self._may_read:
            self._room.set()

    def _hand_out(self, job: Job) -> None:
        match job:
            case messages.ScoreFrames():
                self._score(job)
            case messages.Decode(piece=piece):
                self._decoding.add(piece)
                self._lane.submit(job)
            case messages.Align():
                if self._aligner is not None:
                    self._aligner.submit(job, self.placed)
            case messages.Release(piece=piece):
                self._decoding.discard(piece)
                self._lane.release(piece)
            case _:
                assert_never(job)

    @property
    def _too_many_commands(self) -> bool:
        return self._machine.waiting_commands > self._options.max_waiting_commands

    @property
    def _may_read(self) -> bool:
        """Reading may pause only while something runs that will free room."""
        if self.over:
            return True
        if self._too_many_commands:  # they move on with the detector alone
            return self._scoring is None
        busy = self._scoring is not None or self._decoding or self._machine.offer() is not None
        return not busy or self.buffered_samples / SAMPLE_RATE <= self._options.buffer_low_s

    # Events and the end

    def _tell(self, event: Event, reason: str = "error") -> None:
        self._telemetry.event(event, self._clock())
        if isinstance(event, messages.Final) and self._options.log_transcripts:
            _log.info("final", extra={"utterance": event.item, "transcript": event.text})
        self._emit(event)
        match event:
            case messages.Finished():
                self._over("finished")
            case messages.Closing(error=error):
                self._over("idle" if isinstance(error, IdleTimeout) else reason)
            case _:
                pass

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let a fault of ours end this session and no other; the client gets an id, the log has the trace."""
        try:
            yield
        except Exception:  # noqa: BLE001 - the boundary of a session
            self.end("error", internal_error(_log, "session failed"))

    def _over(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
            self._alarm.cancel()
            self._lane.detach()
            if self._aligner is not None:
                self._aligner.forget(self.placed)
            self._vad.close()
            self._ended.set()
            self._room.set()
