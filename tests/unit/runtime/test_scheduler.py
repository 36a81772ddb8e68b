import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.domain import Hypothesis, StepKind
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineNotReady, EngineTimeout, InvalidValue
from qwen3_asr_server.messages import DecodeFailed, Heard, Lost, Skipped
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.scheduler import SchedulerOptions, StepScheduler
from support.clock import clock, settle, virtual_time
from support.steps import HeldEngine, Speaker, decode

PARTIAL, CANDIDATE, FINAL = StepKind.PARTIAL, StepKind.CANDIDATE, StepKind.FINAL


@asynccontextmanager
async def scheduling(engine: HeldEngine, *, ready: bool = True, **options: Any) -> AsyncIterator[StepScheduler]:
    """Run a scheduler; afterwards no stream is open, nothing runs and no task is left."""
    scheduler = StepScheduler(SchedulerOptions(**options), Metrics(), clock)
    scheduler.start()
    if ready:
        scheduler.engine_ready(engine)
    try:
        yield scheduler
    finally:
        await scheduler.stop()
    assert engine.opened == engine.closed
    assert not engine.running
    assert asyncio.all_tasks() == {asyncio.current_task()}


def attach(scheduler: StepScheduler, number: int = 0, **traits: Any) -> Speaker:
    speaker = Speaker(number, clock, last_step=clock(), **traits)
    speaker.lane = scheduler.attach(speaker)
    return speaker


# Partials


@virtual_time
async def test_below_capacity_everybody_is_served_at_the_floor():
    engine = HeldEngine(step_s=0.1)
    async with scheduling(engine, max_partials=32) as scheduler:
        speakers = [attach(scheduler, n) for n in range(3)]
        for speaker in speakers:
            speaker.lane.notify()
        await asyncio.sleep(4.05)
        for speaker in speakers:
            assert len(speaker.pulls) == 10
            gaps = [b - a for a, b in zip(speaker.pulls, speaker.pulls[1:], strict=False)]
            assert gaps == pytest.approx([0.4] * 9)


@virtual_time
async def test_above_capacity_intervals_stretch_evenly():
    engine = HeldEngine(step_s=0.2)  # slow: the slots shrink to one
    async with scheduling(engine, max_partials=4) as scheduler:
        speakers = [attach(scheduler, n) for n in range(10)]
        for speaker in speakers:
            speaker.lane.notify()
        await asyncio.sleep(60)
        counts = [sum(at > clock() - 40 for at in speaker.pulls) for speaker in speakers]
        assert max(counts) - min(counts) <= 1, "all get the same share"
        assert scheduler.stats()["partial_slots"] == 1
        assert sum(counts) == pytest.approx(40 / 0.2, abs=2), "and no slot stands idle"


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 12), st.floats(0.01, 0.6))
def test_never_more_partials_than_slots(cap, sessions, step_s):
    @virtual_time
    async def run():
        engine = HeldEngine(step_s=step_s)
        async with scheduling(engine, max_partials=cap) as scheduler:
            for number in range(sessions):
                attach(scheduler, number).lane.notify()
            for _ in range(40):
                await asyncio.sleep(0.1)
                stats = scheduler.stats()
                assert engine.running.count(PARTIAL) <= stats["partials_running"] <= cap
            assert engine.most[PARTIAL] <= cap

    run()


@virtual_time
async def test_the_longest_waiting_is_next():
    engine = HeldEngine(step_s=1.0)
    async with scheduling(engine, max_partials=1) as scheduler:
        speakers = [attach(scheduler, n) for n in range(4)]
        for speaker, age_s in zip(speakers, (5, 20, 10, 1), strict=True):
            speaker.last_step = clock() - age_s
            speaker.lane.notify()
        await asyncio.sleep(3.5)
        first_pulls = sorted(speakers, key=lambda s: s.pulls[0])
        assert [s.name for s in first_pulls] == [1, 2, 0, 3]


@virtual_time
async def test_a_partial_that_falls_due_while_the_loop_looks_is_not_forgotten():
    """Timers ring a little early, and time goes on between two looks at the clock: here by chance."""
    chance = random.Random(1)
    engine = HeldEngine(step_s=0.1)
    scheduler = StepScheduler(SchedulerOptions(), Metrics(), lambda: clock() - chance.choice((0.0, 0.001)))
    scheduler.start()
    scheduler.engine_ready(engine)
    speaker = attach(scheduler)
    speaker.lane.notify()
    await asyncio.sleep(60)
    await scheduler.stop()
    assert len(speaker.pulls) >= 140


@virtual_time
async def test_without_a_change_nothing_runs():
    engine = HeldEngine()
    async with scheduling(engine) as scheduler:
        silent = attach(scheduler, speaking=False)
        silent.lane.notify()
        await asyncio.sleep(100)
        assert not silent.pulls
        silent.speaking = True
        silent.lane.notify()
        await asyncio.sleep(1)
        assert silent.pulls


@virtual_time
async def test_an_offer_that_was_withdrawn_is_not_pulled():
    async with scheduling(HeldEngine()) as scheduler:
        speaker = attach(scheduler)
        speaker.lane.notify()
        speaker.speaking = False
        speaker.lane.notify()
        await asyncio.sleep(2)
        assert not speaker.pulls


@virtual_time
async def test_a_partial_without_room_is_skipped():
    async with scheduling(HeldEngine(on_step=lambda kind: None)) as scheduler:
        speaker = attach(scheduler)
        speaker.lane.notify()
        await asyncio.sleep(0.6)
        assert speaker.outcomes == [Skipped(0, PARTIAL)]


@virtual_time
async def test_no_more_sessions_should_come_to_an_engine_that_is_full():
    class LimitedEngine(HeldEngine):
        full = False

    engine = LimitedEngine()
    async with scheduling(engine) as scheduler:
        assert not scheduler.crowded
        engine.full = True
        assert scheduler.crowded


# Finals and candidates


@virtual_time
async def test_finals_come_before_candidates_and_each_in_order():
    engine = HeldEngine(step_s=1.0)
    async with scheduling(engine, max_urgent=1) as scheduler:
        speaker = attach(scheduler, speaking=False)
        for piece, kind in enumerate((CANDIDATE, CANDIDATE, FINAL, FINAL)):
            speaker.lane.submit(decode(kind, piece))
        await asyncio.sleep(5)
        assert [outcome.piece for outcome in speaker.outcomes] == [2, 3, 0, 1]


@virtual_time
async def test_finals_do_not_wait_for_partials():
    engine = HeldEngine(step_s=1.0)
    async with scheduling(engine, max_partials=1) as scheduler:
        for number in range(5):
            attach(scheduler, number).lane.notify()
        await asyncio.sleep(0.5)
        assert engine.running == [PARTIAL]
        ending = attach(scheduler, speaking=False)
        ending.lane.submit(decode(FINAL, 9))
        await asyncio.sleep(1.05)
        assert [type(outcome) for outcome in ending.outcomes] == [Heard]


@virtual_time
async def test_finals_have_a_bound_of_their_own():
    engine = HeldEngine(step_s=1.0)
    async with scheduling(engine, max_urgent=3) as scheduler:
        speaker = attach(scheduler, speaking=False)
        for piece in range(7):
            speaker.lane.submit(decode(CANDIDATE if piece % 2 else FINAL, piece))
        await asyncio.sleep(0.5)
        assert len(engine.running) == 3
        assert scheduler.stats()["finals_waiting"] == 4
        await asyncio.sleep(5)
        assert len(speaker.outcomes) == 7


# Streams


@virtual_time
async def test_steps_of_a_piece_share_a_stream_until_it_is_released():
    engine = HeldEngine()
    async with scheduling(engine) as scheduler:
        speaker = attach(scheduler, speaking=False)
        for kind in (CANDIDATE, CANDIDATE, FINAL):
            speaker.lane.submit(decode(kind, 1))
            await asyncio.sleep(1)
        assert (engine.opened, engine.closed) == (1, 0)
        speaker.lane.release(1)
        await settle()
        assert engine.closed == 1
        speaker.lane.release(1)  # a second release is harmless


@virtual_time
async def test_an_engine_can_tell_whose_pieces_it_gets():
    engine = HeldEngine()
    async with scheduling(engine) as scheduler:
        speakers = [attach(scheduler, number, speaking=False) for number in range(3)]
        for piece in range(2):
            for speaker in speakers:
                speaker.lane.submit(decode(FINAL, piece))
        await asyncio.sleep(1)
    first, second = engine.sessions[:3], engine.sessions[3:]
    assert first == second
    assert len({*first} - {None}) == 3


@pytest.mark.parametrize("when_s", [0.0, 0.05], ids=["before it runs", "in its middle"])
def test_a_released_step_is_cancelled_and_not_delivered(when_s):
    @virtual_time
    async def run():
        engine = HeldEngine()
        async with scheduling(engine) as scheduler:
            speaker = attach(scheduler, speaking=False)
            speaker.lane.submit(decode(FINAL, 1))
            await asyncio.sleep(when_s)
            speaker.lane.release(1)
            await asyncio.sleep(1)
            assert not speaker.outcomes
            assert engine.opened == engine.closed
            assert scheduler.stats()["finals_running"] == scheduler.stats()["finals_waiting"] == 0

    run()


@virtual_time
async def test_a_step_that_was_created_but_has_not_begun_can_be_released():
    engine = HeldEngine()
    async with scheduling(engine) as scheduler:
        speaker = attach(scheduler, speaking=False)
        speaker.lane.submit(decode(CANDIDATE, 1))
        await asyncio.sleep(1)
        speaker.lane.submit(decode(FINAL, 1))
        for _ in range(3):  # whenever in its first moments
            await asyncio.sleep(0)
            if scheduler.stats()["finals_running"]:
                break
        assert scheduler.stats()["finals_running"] == 1
        speaker.lane.release(1)
        await asyncio.sleep(1)
        assert scheduler.stats()["finals_running"] == 0
        assert engine.opened == engine.closed == 1


@virtual_time
async def test_detaching_drops_everything_of_that_lane_and_nothing_else():
    engine = HeldEngine()
    async with scheduling(engine, max_urgent=1) as scheduler:
        leaving, staying = attach(scheduler, 0), attach(scheduler, 1, speaking=False)
        leaving.lane.notify()
        leaving.lane.submit(decode(FINAL, 1))
        leaving.lane.submit(decode(FINAL, 2))
        staying.lane.submit(decode(FINAL, 1))
        await asyncio.sleep(0.05)
        leaving.lane.detach()
        await asyncio.sleep(2)
        assert not leaving.outcomes
        assert not leaving.pulls
        assert [type(outcome) for outcome in staying.outcomes] == [Heard]
        leaving.lane.notify()
        await asyncio.sleep(2)
        assert not leaving.pulls


# Failures


@pytest.mark.parametrize(
    ("raised", "told", "streams"),
    [
        (EngineError("unintelligible"), EngineError, 1),
        (EngineCrashed("gone"), EngineCrashed, 2),
        (InvalidValue("no such language"), InvalidValue, 1),
        (ValueError("/a/secret/path"), EngineCrashed, 2),
        (None, EngineCrashed, 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_failing_step_is_an_outcome(raised, told, streams, caplog):
    def misbehave(kind):
        if raised is not None:
            raise raised

    @virtual_time
    async def run():
        engine = HeldEngine(on_step=misbehave)
        async with scheduling(engine) as scheduler:
            speaker = attach(scheduler, speaking=False)
            speaker.lane.submit(decode(FINAL, 1))
            await asyncio.sleep(1)
            (failed,) = speaker.outcomes
            assert isinstance(failed, DecodeFailed)
            assert type(failed.error) is told
            assert "secret" not in failed.error.message
            engine.on_step = None
            speaker.lane.submit(decode(FINAL, 1))
            await asyncio.sleep(1)
            assert isinstance(speaker.outcomes[1], Heard)
            assert engine.opened == streams, "a stream in an unknown state is not asked again"

    with caplog.at_level(logging.CRITICAL):
        run()


def test_a_stream_that_cannot_be_opened_is_an_outcome_too():
    class Unwilling(HeldEngine):
        def open_stream(self, options):
            raise InvalidValue("not a language of this engine", param="language")

    @virtual_time
    async def run():
        async with scheduling(Unwilling()) as scheduler:
            speaker = attach(scheduler, speaking=False)
            speaker.lane.submit(decode(FINAL, 1))
            await asyncio.sleep(1)
            (failed,) = speaker.outcomes
            assert isinstance(failed.error, InvalidValue)

    run()


@pytest.mark.parametrize(("audio_s", "step_s", "expected"), [(2, 3.9, Heard), (2, 4.1, DecodeFailed)])
def test_the_deadline_of_a_step_grows_with_its_audio(audio_s, step_s, expected):
    @virtual_time
    async def run():
        async with scheduling(HeldEngine(step_s=step_s), step_timeout_s=3.0) as scheduler:
            speaker = attach(scheduler, speaking=False)
            speaker.lane.submit(decode(FINAL, 1, audio_s))
            await asyncio.sleep(10)
            assert [type(outcome) for outcome in speaker.outcomes] == [expected]

    run()


@virtual_time
async def test_waiting_does_not_count_as_working_but_has_its_own_deadline():
    engine = HeldEngine(step_s=3.0)
    async with scheduling(engine, max_urgent=1, step_timeout_s=3.0, queue_timeout_s=10.0) as scheduler:
        speaker = attach(scheduler, speaking=False)
        for piece in range(5):
            speaker.lane.submit(decode(FINAL, piece))
        await asyncio.sleep(10.1)
        assert [type(outcome) for outcome in speaker.outcomes] == [Heard, Heard, Heard, DecodeFailed]
        assert isinstance(speaker.outcomes[-1].error, EngineTimeout)
        await asyncio.sleep(5)
        assert isinstance(speaker.outcomes[-1], Heard)


@virtual_time
async def test_a_stream_that_does_not_close_holds_nobody_up(caplog):
    engine = HeldEngine(close_s=1e9)
    scheduler = StepScheduler(SchedulerOptions(close_timeout_s=5.0), Metrics(), clock)
    scheduler.start()
    scheduler.engine_ready(engine)
    speaker = attach(scheduler, speaking=False)
    speaker.lane.submit(decode(FINAL, 1))
    await asyncio.sleep(1)
    began = clock()
    await scheduler.stop()
    assert clock() - began == pytest.approx(5.0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Loading


@virtual_time
async def test_steps_wait_for_an_engine_that_loads():
    engine = HeldEngine()
    async with scheduling(engine, ready=False) as scheduler:
        speaker = attach(scheduler)
        speaker.lane.notify()
        speaker.lane.submit(decode(FINAL, 1))
        await asyncio.sleep(30)
        assert not speaker.outcomes
        assert not speaker.pulls
        scheduler.engine_ready(engine)
        await asyncio.sleep(0.15)
        assert {outcome.piece for outcome in speaker.outcomes} == {0, 1}


@virtual_time
async def test_steps_fail_when_it_cannot_load_until_it_can():
    engine = HeldEngine()
    async with scheduling(engine, ready=False) as scheduler:
        speaker = attach(scheduler, speaking=False)
        speaker.lane.submit(decode(FINAL, 1))
        scheduler.engine_failed(EngineNotReady("no weights"))
        await settle()
        speaker.lane.submit(decode(FINAL, 2))
        await settle()
        assert [outcome.error.message for outcome in speaker.outcomes] == ["no weights"] * 2
        scheduler.engine_ready(engine)
        speaker.lane.submit(decode(FINAL, 3))
        await asyncio.sleep(1)
        assert speaker.outcomes[-1] == Heard(3, FINAL, 16000, Hypothesis("text"))


# Death


@virtual_time
async def test_an_engine_that_is_gone_takes_with_it_what_it_had_begun_and_nothing_else():
    engine, other = HeldEngine(step_s=1.0), HeldEngine()
    async with scheduling(engine, max_urgent=1) as scheduler:
        begun, waiting = (attach(scheduler, n, speaking=False) for n in range(2))
        begun.lane.submit(decode(FINAL, 1))
        waiting.lane.submit(decode(FINAL, 1))
        await asyncio.sleep(0.5)
        error = EngineCrashed("it died")
        scheduler.engine_gone(error)
        assert begun.outcomes == [Lost(1, error)]
        assert not scheduler.is_open
        await asyncio.sleep(30)
        assert not engine.running
        assert waiting.outcomes == []
        scheduler.engine_ready(other)
        await asyncio.sleep(0.2)
        assert waiting.outcomes == [Heard(1, FINAL, 16000, Hypothesis("text"))]
        assert other.opened == 1
        assert begun.outcomes == [Lost(1, error)]
        assert not scheduler.crowded


@virtual_time
async def test_an_utterance_between_two_steps_is_lost_too():
    engine = HeldEngine()
    async with scheduling(engine) as scheduler:
        speaker = attach(scheduler)
        speaker.lane.notify()
        await asyncio.sleep(0.55)
        assert not engine.running
        speaker.speaking = False
        scheduler.engine_gone(EngineCrashed("it died"))
        assert isinstance(speaker.outcomes[-1], Lost)
        await settle()
        assert engine.closed == 1


@virtual_time
async def test_a_crashed_step_asks_whether_all_is_lost_before_it_is_answered():
    def crash(kind):
        raise EngineCrashed("it died")

    async with scheduling(HeldEngine(on_step=crash)) as scheduler:
        speaker = attach(scheduler, speaking=False)
        error = EngineCrashed("all of it")
        scheduler.on_crash = lambda: scheduler.engine_gone(error)
        speaker.lane.submit(decode(FINAL, 1))
        await asyncio.sleep(0.2)
        assert speaker.outcomes == [Lost(1, error)]


@virtual_time
async def test_the_time_without_an_engine_is_no_crowd():
    engine = HeldEngine(step_s=0.01)
    async with scheduling(engine, ready=False, longest_interval_s=2.0) as scheduler:
        for number in range(3):
            attach(scheduler, number, speaking=False).lane.submit(decode(FINAL, 1))
        await asyncio.sleep(30)
        scheduler.engine_ready(engine)
        assert not scheduler.crowded
        await asyncio.sleep(1)
        assert not scheduler.crowded
        assert scheduler.stats()["partial_slots"] > 1


# Everything together


@settings(max_examples=40)
@given(st.data())
def test_whatever_happens_every_decode_is_answered_once_or_released(data):
    """Random submits, releases, notifies and detaches on a random engine; the checks of `scheduling` follow."""

    @virtual_time
    async def run():
        engine = HeldEngine(step_s=data.draw(st.floats(0.01, 0.5)), close_s=0.05)
        async with scheduling(engine, max_urgent=data.draw(st.integers(1, 3)), max_partials=2) as scheduler:
            speakers = [attach(scheduler, number, speaking=number == 0) for number in range(3)]
            asked: dict[tuple[int, int], int] = {}
            released: set[tuple[int, int]] = set()
            for piece in range(1, data.draw(st.integers(1, 12))):
                speaker = data.draw(st.sampled_from(speakers))
                action = data.draw(st.sampled_from(["final", "candidate", "release", "notify", "wait"]))
                if action in ("final", "candidate"):
                    speaker.lane.submit(decode(StepKind[action.upper()], piece))
                    asked[speaker.name, piece] = 1
                elif action == "release":
                    number = data.draw(st.integers(1, piece))
                    speaker.lane.release(number)
                    released.add((speaker.name, number))
                elif action == "notify":
                    speaker.lane.notify()
                else:
                    await asyncio.sleep(data.draw(st.floats(0, 0.5)))
            await asyncio.sleep(20)
            for speaker in speakers:
                answered = [outcome.piece for outcome in speaker.outcomes if outcome.piece]
                assert len(answered) == len(set(answered))
                for name, piece in asked:
                    if name == speaker.name and (name, piece) not in released:
                        assert piece in answered

    run()
