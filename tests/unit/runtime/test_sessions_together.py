"""What other sessions say changes nothing: each one's events are those of the same session alone.

Several live sessions share the real batcher, the real scheduler and an engine whose answers depend on the audio
alone, in virtual time. Alone, a session sends large packets as fast as they are taken; together with others it is
cut, paced and kept waiting in any way.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.domain import SAMPLE_RATE, Hypothesis, Samples, SessionConfig, StepKind, StreamOptions
from qwen3_asr_server.domain import TurnDetection as Turns
from qwen3_asr_server.messages import (
    AppendBytes,
    Clear,
    Command,
    Commit,
    Event,
    Final,
    Finish,
    Partial,
    UtteranceFailed,
)
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.live import LiveOptions, LiveSession, Workers
from qwen3_asr_server.runtime.scheduler import SchedulerOptions, StepScheduler
from qwen3_asr_server.runtime.telemetry import Latencies
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.vad import load_vad
from qwen3_asr_server.vad._base import Floats
from qwen3_asr_server.vad._batcher import VadBatcher
from support.batchers import HoldingBatcher, SteppedBatcher
from support.clock import VirtualLoop, clock
from support.fake_engine import FakeEngine, FakeStream
from support.session_sim import assert_conversation, contradictions
from support.speech import joined, pcm16

OPTIONS = SessionOptions(max_piece_s=4.0, max_utterance_s=9.0, quiet_search_s=1.5, overlap_s=0.0)
"""Limits that short talks reach. Without overlap nothing confirmed has to be taken back."""

# What is said


@dataclass(frozen=True)
class Talk:
    """What a session says: audio, each stretch of it followed by a command."""

    config: SessionConfig
    stretches: Sequence[tuple[bytes, Command]]


SPEECH = st.tuples(st.none(), st.integers(1, 50), st.integers(0, 63))
NO_SPEECH = st.tuples(st.sampled_from([0.0, 0.0, 0.06, 0.11, 0.14]), st.integers(1, 50), st.just(0))
"""Silence, noise, and two levels around the threshold."""
SCRIPTS = st.lists(st.tuples(SPEECH, NO_SPEECH, SPEECH), min_size=1, max_size=3).map(lambda turns: sum(turns, ()))
VAD_CONFIGS = st.builds(
    lambda silence_ms, padding_ms: SessionConfig(turn_detection=Turns(0.5, silence_ms, padding_ms), words=True),
    st.integers(200, 2000),
    st.integers(0, 500),
)
VAD_TALKS = st.tuples(VAD_CONFIGS, st.tuples(st.tuples(SCRIPTS, st.just(Finish()))))
MANUAL_TALKS = st.tuples(
    st.just(SessionConfig(turn_detection=None, words=True)),
    st.lists(st.tuples(SCRIPTS, st.sampled_from([Commit(), Commit(), Clear()])), min_size=1, max_size=2),
)


def talk(speaker: int, config: SessionConfig, stretches: Sequence[tuple[Any, Command]]) -> Talk:
    """Let a speaker talk in a voice of their own: no two have a word in common."""

    def loudness(level: float | None, shade: int) -> float:
        return level if level is not None else (1024 + 64 * speaker + shade + 0.5) / 4096

    def spoken(script: Sequence[tuple[float | None, int, int]]) -> bytes:
        parts = [np.full(500 * length, loudness(level, shade), np.float32) for level, length, shade in script]
        return pcm16(np.concatenate([*parts, np.zeros(0, np.float32)]))

    return Talk(config, [(spoken(script), command) for script, command in stretches])


# How it is sent


@dataclass(frozen=True)
class Manner:
    """How a session's audio is cut into packets and paced."""

    sizes: Sequence[int] = (6400,)
    """Bytes; the last is repeated."""
    speed: float = float("inf")
    """1 is real time."""
    starts_s: float = 0.0

    def commands(self, talk: Talk) -> Iterator[tuple[Command, float]]:
        """Return what to submit, and how long to wait afterwards."""
        sizes = itertools.chain(self.sizes, itertools.repeat(self.sizes[-1]))
        for data, command in talk.stretches:
            at = 0
            while at < len(data):
                packet = data[at : at + next(sizes)]
                at += len(packet)
                yield AppendBytes(packet), len(packet) / 2 / SAMPLE_RATE / self.speed
            yield command, 0.0


MANNERS = st.builds(
    Manner,
    st.builds(
        lambda some, rest: (*some, rest),
        st.lists(st.sampled_from([1, 2, 7, 320, 1023, 1024, 1025, 9600]), max_size=6),
        st.sampled_from([1920, 3200, 3201, 9600, 100_000]),
    ),
    st.sampled_from([0.9, 1.0, 1.0, 3.0, 12.0, float("inf")]),
    st.sampled_from([0.0, 0.0, 0.05, 0.7]),
)

# Who listens


class FadingVad:
    """A cheap detector with a memory: the probability follows the loudness, and lags behind it."""

    name = "fading"

    def new_state(self) -> Floats:
        return np.zeros(1, np.float32)

    def score(self, frames: Floats, states: Floats) -> tuple[Floats, Floats]:
        loudness = np.minimum(1, 4 * np.sqrt(np.mean(np.square(frames), axis=1)))
        states = states + np.float32(0.4) * (loudness[:, np.newaxis] - states)
        return states[:, 0].copy(), states


@dataclass
class UnsteadyEngine(FakeEngine):
    """Hears what the fake engine hears, but keeps everybody waiting and has no room at times."""

    rng: Random | None = None

    def open_stream(self, options: StreamOptions) -> "UnsteadyStream":
        super().open_stream(options)
        return UnsteadyStream(self, options)


@dataclass
class UnsteadyStream(FakeStream):
    """Takes of each step only what is new to it, as engines with a state do."""

    heard: Samples = field(default_factory=lambda: np.zeros(0, np.float32), init=False)

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        assert isinstance(self.engine, UnsteadyEngine)
        rng = self.engine.rng
        if rng is not None:
            await asyncio.sleep(rng.choice([0.0, 0.004, 0.08, 0.3]))
            if kind is not StepKind.FINAL and rng.random() < 0.1:
                return None
        self.heard = np.concatenate([self.heard[: len(audio)], audio[len(self.heard) :]])
        return await super().step(self.heard, kind)


async def listen(talks: Sequence[tuple[Talk, Manner]], vad: VadBatcher, rng: Random | None) -> list[list[Event]]:
    """Hold sessions at the same time and return their events; afterwards nothing of them is left."""
    engine, metrics = UnsteadyEngine(rng=rng), Metrics()
    bounds = SchedulerOptions() if rng is None else SchedulerOptions(rng.choice([1, 3]), rng.choice([1, 2, 32]))
    scheduler = StepScheduler(bounds, metrics, clock)
    await engine.start()
    vad.start()
    scheduler.start()
    scheduler.engine_ready(engine)
    workers = Workers(vad, scheduler, metrics, Latencies(), clock)
    try:
        async with asyncio.timeout(600):
            return await asyncio.gather(*(hold(talk, manner, workers) for talk, manner in talks))
    finally:
        await scheduler.stop()
        vad.stop()
        assert vad.streams == engine.open_streams == 0


async def hold(talk: Talk, manner: Manner, workers: Workers) -> list[Event]:
    """Hold one session to its end."""
    await asyncio.sleep(manner.starts_s)
    events: list[Event] = []
    live = LiveSession(talk.config, LiveOptions(OPTIONS), workers, events.append)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(live.run())
        for command, pause_s in manner.commands(talk):
            await live.room()
            await live.submit(command)
            await asyncio.sleep(pause_s)
        await live.submit(Finish())
    return events


def in_virtual_time(sessions: Any) -> list[list[Event]]:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        heard: list[list[Event]] = runner.run(sessions)
        return heard


def lasting(events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
    """Return what must not depend on anybody else: what befell the audio, and what was heard in it, each in order.

    When a final comes, and how many partials before it, follows the load.
    """
    finals = [event for event in events if isinstance(event, Final | UtteranceFailed)]
    return [event for event in events if not isinstance(event, Partial | Final | UtteranceFailed)], finals


@settings(max_examples=40, derandomize=True)
@given(
    st.lists(st.tuples(VAD_TALKS | MANUAL_TALKS, MANNERS), min_size=2, max_size=4),
    st.integers(0, 2**32),
    st.sampled_from([2, 64]),
)
def test_what_other_sessions_say_changes_nothing(drawn: Any, seed: int, max_rows: int) -> None:
    """Items and their order, texts, word times, and where speech began and stopped."""
    rng = Random(seed)
    talks = [(talk(speaker, *said), manner) for speaker, (said, manner) in enumerate(drawn)]
    vad = SteppedBatcher(FadingVad(), lambda: rng.choice([0.0, 0.002, 0.1, 0.1]), max_rows=max_rows)
    together = in_virtual_time(listen(talks, vad, rng))
    for (said, _), events in zip(talks, together, strict=True):
        (alone,) = in_virtual_time(listen([(said, Manner())], SteppedBatcher(FadingVad(), lambda: 0.0), None))
        assert lasting(events) == lasting(alone)
        assert contradictions(events) == 0
        assert_conversation(events)


@pytest.mark.parametrize("speeds", [(1, 1, 1), (1, 12, float("inf"))])
def test_so_it_is_with_the_real_detector_in_its_thread(speeds: Sequence[float]) -> None:
    silence = np.zeros(SAMPLE_RATE, np.float32)
    spoken = [("queue-thankyou", "conf-adminmenu"), ("queue-holdtime", "tt-weasels"), ("conf-adminmenu",)]
    config = SessionConfig(words=True)
    talks = [Talk(config, [(pcm16(np.concatenate([joined(n, 1.2), silence])), Finish())]) for n in spoken]
    rows: list[int] = []

    def vad() -> VadBatcher:
        return HoldingBatcher(load_vad(), on_batch=lambda together, _: rows.append(together))

    manners = [Manner((3200,), speed) for speed in speeds]
    together = in_virtual_time(listen(list(zip(talks, manners, strict=True)), vad(), Random(1)))
    assert max(rows) == len(talks)
    alone = [in_virtual_time(listen([(said, Manner())], vad(), None))[0] for said in talks]
    assert [lasting(events) for events in together] == [lasting(events) for events in alone]
    assert all(any(isinstance(event, Final) and event.text for event in events) for events in alone)
