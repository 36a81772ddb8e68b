"""Drive a session machine through every order of events that a server could produce.

Audio is written as a script of `(amplitude, frames)`: the scripted detector's probability of a frame is its
mean amplitude, and the scripted engine spells what it hears, one letter an 80 ms block that is loud enough.
So a final is a function of its audio range, and a range that is off by a block shows in the text.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from qwen3_asr_server.domain import FRAME_SAMPLES, GRID_SAMPLES, Hypothesis, Samples, SessionConfig, StepKind
from qwen3_asr_server.errors import EngineCrashed, EngineTimeout
from qwen3_asr_server.messages import (
    AppendAudio,
    Command,
    Decode,
    DecodeFailed,
    Event,
    Final,
    Heard,
    Lost,
    Outcome,
    Partial,
    Release,
    Scored,
    ScoreFrames,
    Skipped,
)
from qwen3_asr_server.session.machine import SessionMachine
from qwen3_asr_server.session.options import SessionOptions
from support.conversation import Conversation
from support.invariants import assert_finished

Script = Sequence[tuple[float, int]]


def audio(script: Script) -> Samples:
    """Return the samples of a script."""
    parts = [np.full(frames * FRAME_SAMPLES, amplitude, np.float32) for amplitude, frames in script]
    return np.concatenate([*parts, np.zeros(0, np.float32)])


def packets(samples: Samples, sizes: Iterable[int]) -> list[AppendAudio]:
    """Cut samples into appends of the given sizes, the last of which is repeated."""
    cut: list[AppendAudio] = []
    remaining = iter(sizes)
    size, at = 1600, 0
    while at < len(samples):
        size = next(remaining, size)
        cut.append(AppendAudio(samples[at : at + size]))
        at += size
    return cut


def spell(samples: Samples) -> str:
    """Return what the scripted engine hears: a letter for every block, by how loud it is."""
    means = np.abs(samples[: len(samples) // GRID_SAMPLES * GRID_SAMPLES]).reshape(-1, GRID_SAMPLES).mean(axis=1)
    return " ".join(chr(ord("a") + int(mean * 25)) for mean in means.tolist() if mean > 0.02)


@dataclass
class Sim:
    """One session between scripted workers, driven in an order drawn from `rng`."""

    config: SessionConfig
    rng: Random
    options: SessionOptions = SessionOptions()
    final_candidates: bool = True
    failures: float = 0.0
    """Share of decodes that fail."""
    skips: float = 0.1
    """Share of partials and candidates that the engine has no room for."""
    deaths: float = 0.0
    """Share of turns at which the engine dies with all that it has begun."""
    events: list[Event] = field(default_factory=list)
    decoded: list[Decode] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.machine = SessionMachine(self.config, self.options, self.now)
        self._work: list[ScoreFrames | Decode] = []
        self._begun: dict[int, int] = {}
        self._lost: set[int] = set()
        self._eager = self.rng.choice([0.1, 0.5, 0.9, 1.0])  # how readily input comes before answers
        self._vad_first = self.rng.random() < 0.5
        self.peak_buffered = 0

    def run(self, commands: Iterable[Command]) -> list[Event]:
        """Feed all commands and answer all jobs, in a random order, until nothing is left to do."""
        waiting = list(commands)[::-1]
        while waiting or self._work or self.machine.offer():
            self.now += self.rng.choice([0.0, 0.001, 0.01, 0.1, 2.0])
            if self.rng.random() < self.deaths:
                self._die()
            choices = [self._answer] * len(self._work) + [self._pull] * (self.machine.offer() is not None)
            if waiting and (not choices or self.rng.random() < self._eager):
                self.machine.handle(waiting.pop(), self.now)
            else:
                self.rng.choice(choices or [lambda: None])()
            self.collect()
        return self.events

    def collect(self) -> None:
        """Take what the machine has to say."""
        self.peak_buffered = max(self.peak_buffered, self.machine.buffered_samples)
        self.events += self.machine.events_to_send()
        for job in self.machine.jobs_to_run():
            match job:
                case Release(piece=piece):
                    self._drop(piece)
                case Decode():
                    self._start(job)
                case ScoreFrames():
                    assert not any(isinstance(w, ScoreFrames) for w in self._work), "one VAD job at a time"
                    self._work.append(job)

    def _start(self, job: Decode) -> None:
        assert not any(isinstance(w, Decode) and w.piece == job.piece for w in self._work), "one decode a piece"
        assert len(job.audio) == job.upto - job.start > 0
        assert len(job.audio) % GRID_SAMPLES == 0
        assert job.item not in self._lost, "what died with an engine is not heard again"
        self.decoded.append(job)
        self._begun[job.piece] = job.item
        self._work.append(job)

    def _pull(self) -> None:
        job = self.machine.pull(self.now)
        assert job is not None
        assert job.kind is StepKind.PARTIAL
        self._start(job)

    def _drop(self, piece: int) -> None:
        self._begun.pop(piece, None)
        self._work = [w for w in self._work if not (isinstance(w, Decode) and w.piece == piece)]

    def _die(self) -> None:
        lost = sorted(self._begun)
        self._lost |= set(self._begun.values())
        for piece in lost:
            self._drop(piece)
        for piece in lost:
            self.machine.outcome(Lost(piece, EngineCrashed("it died")), self.now)
            self.collect()

    def _answer(self) -> None:
        scores = [i for i, job in enumerate(self._work) if isinstance(job, ScoreFrames)]
        chosen = scores[0] if scores and self._vad_first else self.rng.randrange(len(self._work))
        job = self._work.pop(chosen)
        self.machine.outcome(self._outcome(job), self.now)

    def _outcome(self, job: ScoreFrames | Decode) -> Outcome:
        if isinstance(job, ScoreFrames):
            return Scored(job.epoch, np.abs(job.frames).mean(axis=1).astype(np.float32))
        if self.rng.random() < self.failures:
            return DecodeFailed(job.piece, job.kind, EngineTimeout("too slow"))
        if job.kind is not StepKind.FINAL and self.rng.random() < self.skips:
            return Skipped(job.piece, job.kind)
        final = job.kind is StepKind.FINAL or (job.kind is StepKind.CANDIDATE and self.final_candidates)
        return Heard(job.piece, job.kind, job.upto, Hypothesis(spell(job.audio), "en", final=final))


def finals(events: Sequence[Event]) -> list[str]:
    """Return the transcripts in order."""
    return [event.text for event in events if isinstance(event, Final)]


def assert_conversation(events: Sequence[Event], *, audio_ms: float | None = None, may_fail: bool = False) -> None:
    """Check a finished session as its client sees it: on the wire, by the rules for every realtime session."""
    wire = Conversation(greeted=False)
    wire.tells(*events)
    assert_finished(
        [json.loads(message) for message in wire.protocol.messages_to_send()], audio_ms=audio_ms, may_fail=may_fail
    )


def contradictions(events: Sequence[Event]) -> int:
    """Count the finals that do not begin with the stable prefix told last."""
    stable: dict[int, str] = {}
    count = 0
    for event in events:
        match event:
            case Partial(item=item, stable=text):
                stable[item] = text
            case Final(item=item, text=text):
                count += not text.startswith(stable.get(item, ""))
            case _:
                pass
    return count
