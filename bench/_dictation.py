"""Sessions of somebody who speaks without end, driven as fast as the engine answers.

A `Speaker` is the server's own session machine in Manual mode: it cuts pieces, asks for candidates and finals, and a
partial is pulled once in every interval of audio. Its speech detector's answers are computed beforehand. A
`ReferenceSpeaker` sends all audio so far once in every interval. Both note each step with a `Meter`. Used by
`step_cost.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from _policies import ReferenceStream
from _work import Meter

from qwen3_asr_server.domain import FRAME_SAMPLES, SAMPLE_RATE, Hypothesis, Samples, SessionConfig, StepKind
from qwen3_asr_server.engines._vllm_request import TokenIds
from qwen3_asr_server.messages import AppendAudio, Commit, Decode, Heard, Release, Scored, ScoreFrames, Skipped
from qwen3_asr_server.session.machine import SessionMachine
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.vad._base import Floats, VadModel

PACKET_SAMPLES = SAMPLE_RATE // 10


class Stream(Protocol):
    """What a piece is decoded by."""

    answer: TokenIds

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        """Decode the piece so far."""
        ...

    async def close(self) -> None:
        """Give it up."""
        ...


@dataclass(slots=True)
class Speaker:
    """A session by our policy; the audio is repeated when it ends."""

    number: int
    audio: Samples
    speech: Floats
    """Probability of each frame of 512 samples of `audio`, which is a whole number of them."""
    open_stream: Callable[[], Stream]
    meter: Meter
    machine: SessionMachine = field(init=False)
    heard_samples: int = 0
    _scored: int = 0
    _streams: dict[int, Stream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machine = SessionMachine(SessionConfig(turn_detection=None), SessionOptions(), 0.0)

    @property
    def at_s(self) -> float:
        """How much was said so far."""
        return self.heard_samples / SAMPLE_RATE

    async def advance(self, seconds: float) -> None:
        """Say more, then take the partial that is due, if there is one."""
        for _ in range(round(seconds * SAMPLE_RATE / PACKET_SAMPLES)):
            begin = self.heard_samples % len(self.audio)
            self.heard_samples += PACKET_SAMPLES
            self.machine.handle(AppendAudio(self.audio[begin : begin + PACKET_SAMPLES]), self.at_s)
            await self._work()
        partial = self.machine.pull(self.at_s)
        if partial is not None:
            await self._decode(partial)
            await self._work()

    async def finish(self) -> None:
        """End the item and wait for its final."""
        self.machine.handle(Commit(), self.at_s)
        await self._work()

    async def close(self) -> None:
        """Give up what is open."""
        for stream in self._streams.values():
            await stream.close()
        self._streams.clear()

    async def _work(self) -> None:
        self.machine.events_to_send()
        while jobs := self.machine.jobs_to_run():
            for job in jobs:
                match job:
                    case ScoreFrames(epoch=epoch, frames=frames):
                        self.machine.outcome(Scored(epoch, self._probabilities(len(frames))), self.at_s)
                    case Decode():
                        await self._decode(job)
                    case Release(piece=piece):
                        if (stream := self._streams.pop(piece, None)) is not None:
                            await stream.close()

    async def _decode(self, job: Decode) -> None:
        if job.piece not in self._streams:
            self._streams[job.piece] = self.open_stream()
        stream = self._streams[job.piece]
        with self.meter.step(self.number, job.kind.name.lower(), self.at_s) as step:
            hypothesis = await stream.step(job.audio, job.kind)
        step.answer = len(stream.answer)
        left_out = Skipped(job.piece, job.kind)
        heard = Heard(job.piece, job.kind, job.upto, hypothesis) if hypothesis is not None else left_out
        self.machine.outcome(heard, self.at_s)

    def _probabilities(self, frames: int) -> Floats:
        places = np.arange(self._scored, self._scored + frames) % len(self.speech)
        self._scored += frames
        return self.speech[places]


@dataclass(slots=True)
class ReferenceSpeaker:
    """A session by the reference's policy."""

    number: int
    audio: Samples
    stream: ReferenceStream
    meter: Meter
    heard_samples: int = 0

    async def advance(self, seconds: float) -> None:
        """Say more and have all of it decoded."""
        self.heard_samples = min(len(self.audio), self.heard_samples + round(seconds * SAMPLE_RATE))
        with self.meter.step(self.number, "partial", self.heard_samples / SAMPLE_RATE):
            await self.stream.step(self.audio[: self.heard_samples])


def speech_of(model: VadModel, audios: Sequence[Samples]) -> list[Floats]:
    """Return the probabilities of each frame of several audios of the same length."""
    frames = np.stack([audio[: len(audio) // FRAME_SAMPLES * FRAME_SAMPLES] for audio in audios])
    frames = frames.reshape(len(audios), -1, FRAME_SAMPLES)
    states = np.stack([model.new_state()] * len(audios))
    found = []
    for at in range(frames.shape[1]):
        scores, states = model.score(frames[:, at], states)
        found.append(scores)
    return list(np.stack(found, axis=1))
