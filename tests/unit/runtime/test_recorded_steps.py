"""Pieces of recordings take what live sessions leave."""

import asyncio
from dataclasses import replace

import pytest

from qwen3_asr_server.domain import StepKind, StreamOptions
from qwen3_asr_server.errors import EngineCrashed, EngineNotReady, EngineTimeout
from qwen3_asr_server.messages import DecodeFailed, Heard, Lost
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.scheduler import SchedulerOptions, StepScheduler
from support.clock import clock, settle, virtual_time
from support.steps import HeldEngine, Speaker, decode


class Floor:
    """A scheduler, and speakers and files that use it."""

    def __init__(self, *, step_s=1.0, ready=True, **options):
        self.engine = HeldEngine(step_s=step_s)
        self.scheduler = StepScheduler(SchedulerOptions(**options), Metrics(), clock)
        self.ready = ready

    async def __aenter__(self):
        self.scheduler.start()
        if self.ready:
            self.scheduler.engine_ready(self.engine)
        return self

    async def __aexit__(self, *_):
        await self.scheduler.stop()
        assert self.engine.opened == self.engine.closed
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def attach(self, **traits):
        traits = {"speaking": False} | traits
        speaker = Speaker(0, clock, last_step=clock(), **traits)
        speaker.lane = self.scheduler.attach(speaker)
        return speaker

    @property
    def recorded(self):
        return self.scheduler.stats()["recorded_running"]


def recorded(piece):
    return replace(decode(StepKind.FINAL, piece), options=StreamOptions(recorded=True))


@virtual_time
async def test_no_more_than_so_many_run_at_once_and_in_order():
    async with Floor(max_recorded=2) as floor:
        file = floor.attach()
        for piece in range(5):
            file.lane.submit(recorded(piece))
        await settle()
        assert floor.recorded == 2
        assert floor.scheduler.stats()["finals_running"] == 0
        await asyncio.sleep(3.1)
        assert [outcome.piece for outcome in file.outcomes] == [0, 1, 2, 3, 4]


@virtual_time
async def test_a_live_final_never_waits_for_pieces_of_recordings():
    async with Floor(max_recorded=16, max_urgent=2, step_s=5.0) as floor:
        file, live = floor.attach(), floor.attach()
        for piece in range(40):
            file.lane.submit(recorded(piece))
        await asyncio.sleep(1)
        assert floor.recorded == 16
        began = clock()
        for piece in (1, 2):
            live.lane.submit(decode(StepKind.FINAL, piece))
        await asyncio.sleep(5.01)
        assert [type(outcome) for outcome in live.outcomes] == [Heard, Heard]
        assert clock() - began < 5.1
        assert not floor.scheduler.crowded


@virtual_time
async def test_while_a_live_final_waits_nothing_recorded_begins():
    async with Floor(max_recorded=4, max_urgent=1) as floor:
        file, live = floor.attach(), floor.attach()
        for piece in range(3):
            live.lane.submit(decode(StepKind.FINAL, piece))
        file.lane.submit(recorded(0))
        await asyncio.sleep(1.5)
        assert floor.recorded == 0
        await asyncio.sleep(1.0)  # two are done, the last one runs and none waits
        assert floor.recorded == 1


@virtual_time
async def test_live_steps_leave_less_room_but_always_some():
    async with Floor(max_recorded=4, max_urgent=8) as floor:
        file, live = floor.attach(), floor.attach()
        for piece in range(3):
            live.lane.submit(decode(StepKind.FINAL, piece))
        for piece in range(8):
            file.lane.submit(recorded(piece))
        await settle()
        assert floor.recorded == 1
        for piece in range(3, 8):
            live.lane.submit(decode(StepKind.FINAL, piece))
        await asyncio.sleep(0.5)
        assert floor.recorded == 1
        await asyncio.sleep(0.6)
        assert floor.recorded == 4


@virtual_time
async def test_speakers_without_end_do_not_starve_a_recording():
    async with Floor(max_recorded=2, max_partials=2, step_s=0.5) as floor:
        speakers = [floor.attach(speaking=True) for _ in range(8)]
        for speaker in speakers:
            speaker.lane.notify()
        file = floor.attach()
        for piece in range(6):
            file.lane.submit(recorded(piece))
        await asyncio.sleep(4)
        assert len(file.outcomes) == 6


@virtual_time
async def test_a_recording_waits_longer_but_not_for_ever():
    async with Floor(max_recorded=1, recorded_timeout_s=100.0, queue_timeout_s=5.0, ready=False) as floor:
        file = floor.attach()
        file.lane.submit(recorded(0))
        await asyncio.sleep(99)
        assert not file.outcomes
        await asyncio.sleep(2)
        (failed,) = file.outcomes
        assert isinstance(failed, DecodeFailed)
        assert isinstance(failed.error, EngineTimeout)


@virtual_time
async def test_a_long_queue_is_no_reason_to_give_up_as_long_as_it_moves():
    async with Floor(max_recorded=1, recorded_timeout_s=10.0, step_s=6.0) as floor:
        file = floor.attach()
        for piece in range(5):
            file.lane.submit(recorded(piece))
        await asyncio.sleep(31)
        assert [type(outcome) for outcome in file.outcomes] == [Heard] * 5


@virtual_time
async def test_what_waits_inside_the_engine_has_the_patience_of_a_recording():
    async with Floor(step_timeout_s=5.0, recorded_timeout_s=50.0, step_s=40.0) as floor:
        file, live = floor.attach(), floor.attach()
        file.lane.submit(recorded(0))
        live.lane.submit(decode(StepKind.FINAL, 0))
        await asyncio.sleep(41)
        assert isinstance(file.outcomes[0], Heard)
        assert isinstance(live.outcomes[0], DecodeFailed)
        floor.engine.step_s = 60.0
        file.lane.submit(recorded(1))
        await asyncio.sleep(61)
        assert isinstance(file.outcomes[1], DecodeFailed)


@virtual_time
async def test_recordings_take_turns():
    """A short one is not behind all pieces of a long one."""
    async with Floor(max_recorded=1) as floor:
        order = []
        for name, pieces in (("long", 6), ("short", 1), ("middle", 3)):
            file = floor.attach()
            file.deliver = lambda outcome, name=name: order.append(name)
            for piece in range(pieces):
                file.lane.submit(recorded(piece))
        await asyncio.sleep(10.1)
        assert order == ["long", "short", "middle", "long", "middle", "long", "middle", "long", "long", "long"]


@virtual_time
async def test_what_is_given_up_never_runs():
    async with Floor(max_recorded=1) as floor:
        file, other = floor.attach(), floor.attach()
        for piece in range(3):
            file.lane.submit(recorded(piece))
        other.lane.submit(recorded(0))
        await settle()
        file.lane.detach()
        await asyncio.sleep(1.5)
        assert not file.outcomes
        assert [type(outcome) for outcome in other.outcomes] == [Heard]
        assert floor.engine.opened == 2


@virtual_time
@pytest.mark.parametrize("gone", [True, False])
async def test_without_an_engine(gone):
    async with Floor(max_recorded=1) as floor:
        file = floor.attach()
        for piece in range(2):
            file.lane.submit(recorded(piece))
        await settle()
        if gone:
            floor.scheduler.engine_gone(EngineCrashed("dead"))
            await settle()
            assert file.outcomes == [Lost(0, file.outcomes[0].error)]
            assert floor.scheduler.stats()["recorded_waiting"] == 1
            floor.scheduler.engine_ready(floor.engine)
            await asyncio.sleep(1.1)
            assert isinstance(file.outcomes[-1], Heard)
        else:
            floor.scheduler.engine_failed(EngineNotReady("no weights"))
            await settle()
            assert [type(outcome) for outcome in file.outcomes] == [DecodeFailed]


@virtual_time
async def test_it_is_measured_apart():
    async with Floor() as floor:
        file = floor.attach()
        file.lane.submit(recorded(0))
        await asyncio.sleep(1.1)
        read = floor.scheduler._metrics.registry.get_sample_value
        assert read("asr_decode_seconds_count", {"kind": "recorded"}) == 1
        assert not read("asr_decode_seconds_count", {"kind": "final"})
