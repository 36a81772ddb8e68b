"""What sessions see of an engine that dies: real machine, scheduler and pool, in virtual time."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from qwen3_asr_server.domain import SessionConfig
from qwen3_asr_server.errors import EngineCrashed, EngineTimeout
from qwen3_asr_server.messages import Commit, Committed, Final, Finish, Finished, SpeechStopped, UtteranceFailed
from qwen3_asr_server.runtime.pool import Pool, PoolOptions
from qwen3_asr_server.session.options import SessionOptions
from support.clock import clock, settle, virtual_time
from support.live import staged
from support.lives import MortalEngine

MANUAL = SessionConfig(turn_detection=None)
QUIET, LOUD = 0.0, 0.3
RESTART_S = 40.0


@asynccontextmanager
async def on_a_mortal_engine(config=None, **options):
    """Run a session on an engine with a pool, loaded."""
    engine = MortalEngine(start_s=0.0)
    async with staged(engine, config, **options) as stage:
        pool = Pool({"a": engine}, PoolOptions(), stage.metrics, clock)
        pool.start(stage.scheduler)
        stage.scheduler.on_crash = pool.look
        await pool.load()
        engine.start_s = RESTART_S
        try:
            yield stage, engine, pool
        finally:
            stage.live.end("test")
            await pool.stop()


def ends(stage):
    """Return how the items ended, in order: the item's number, and its text or error."""
    told = stage.of(Final, UtteranceFailed)
    return [(e.item, e.text if isinstance(e, Final) else type(e.error)) for e in told]


@virtual_time
async def test_the_open_utterance_fails_and_the_next_one_waits_for_the_restart():
    async with on_a_mortal_engine() as (stage, engine, pool):
        await stage.speak((0.5, QUIET), (1.5, LOUD))
        engine.dead = True
        await stage.speak((1.0, LOUD))
        assert pool.status().phase == "restarting"
        assert ends(stage) == [], "it is still spoken"
        await stage.speak((1.5, QUIET))
        assert ends(stage) == [(0, EngineCrashed)]
        kinds = [type(event) for event in stage.events]
        assert kinds.index(SpeechStopped) < kinds.index(Committed) < kinds.index(UtteranceFailed)

        await stage.speak((2.0, LOUD), (1.5, QUIET))
        assert len(stage.of(Committed)) == 2
        assert len(ends(stage)) == 1, "its audio waits"
        await asyncio.sleep(RESTART_S)
        assert [number for number, _ in ends(stage)] == [0, 1]
        assert stage.of(Final)[0].text
        assert not stage.live.over

        await stage.speak((2.0, LOUD), (1.5, QUIET))
        assert isinstance(stage.of(Final)[-1], Final)
        assert len(stage.of(Final)) == 2
        await stage.live.submit(Finish())
        await settle()
        assert isinstance(stage.events[-1], Finished)


@virtual_time
async def test_a_death_while_nobody_speaks_costs_nothing():
    async with on_a_mortal_engine() as (stage, engine, pool):
        await stage.speak((1.5, LOUD), (1.5, QUIET))
        engine.dead = True
        await stage.speak((3.0, QUIET))
        assert pool.status().phase == "restarting", "noticed though nothing was asked of it"
        await stage.speak((1.5, LOUD), (1.5, QUIET))
        await asyncio.sleep(RESTART_S)
        assert [type(text) for _, text in ends(stage)] == [str, str]


@virtual_time
async def test_what_was_spoken_after_the_death_is_heard_as_ever():
    texts = []
    for dies in (False, True):
        async with on_a_mortal_engine(MANUAL) as (stage, engine, pool):
            engine.dead = dies
            pool.look()
            await stage.speak((8.0, LOUD), (2.1, QUIET), (4.0, 0.2))
            await stage.live.submit(Commit())
            await asyncio.sleep(5)
            assert bool(ends(stage)) != dies
            await asyncio.sleep(RESTART_S)
            texts += [final.text for final in stage.of(Final)]
    assert len(texts) == 2
    assert texts[0] == texts[1] != ""


@virtual_time
async def test_a_manual_item_fails_when_it_is_committed_and_the_next_one_works():
    async with on_a_mortal_engine(MANUAL) as (stage, engine, pool):
        await stage.speak((3.0, LOUD))
        engine.dead = True
        await stage.speak((3.0, LOUD))
        await asyncio.sleep(RESTART_S + 5)
        assert pool.status().phase == "ready"
        assert engine.open_streams == 0, "nothing is heard in vain"
        assert ends(stage) == []
        await stage.live.submit(Commit())
        await settle()
        await stage.speak((2.0, LOUD))
        await stage.live.submit(Commit())
        await asyncio.sleep(5)
        assert [type(text) for _, text in ends(stage)] == [type, str]


@virtual_time
async def test_a_minute_of_audio_waits_and_then_the_client_is_read_more_slowly():
    async with on_a_mortal_engine() as (stage, engine, pool):
        engine.dead = True
        pool.look()
        engine.start_s = 100.0
        for _ in range(10):
            await stage.speak((5.0, LOUD), (1.5, QUIET), paced=False)
        await settle()
        room = asyncio.create_task(stage.live.room())
        await asyncio.sleep(30)
        assert room.done(), "there is room for sixty seconds"
        for _ in range(4):
            await stage.speak((5.0, LOUD), (1.5, QUIET), paced=False)
        await settle()
        room = asyncio.create_task(stage.live.room())
        await asyncio.sleep(20)
        assert not room.done()
        await asyncio.sleep(100)
        assert room.done()
        assert not stage.live.over


@virtual_time
async def test_a_final_does_not_wait_for_ever():
    async with on_a_mortal_engine() as (stage, engine, pool):
        engine.dead = True
        pool.look()
        engine.start_s = 1000.0
        await stage.speak((1.5, LOUD), (1.5, QUIET))
        await asyncio.sleep(200)
        assert ends(stage) == [(0, EngineTimeout)]
        assert not stage.live.over


@virtual_time
async def test_finishing_meanwhile_ends_in_time():
    async with on_a_mortal_engine(session=SessionOptions(finish_timeout_s=10)) as (stage, engine, pool):
        await stage.speak((1.5, LOUD))
        engine.dead = True
        pool.look()
        await stage.speak((1.5, QUIET), (1.5, LOUD))
        await stage.live.submit(Finish())
        await asyncio.sleep(11)
        assert ends(stage) == [(0, EngineCrashed), (1, EngineTimeout)]
        assert isinstance(stage.events[-1], Finished)


@pytest.mark.parametrize("hangs", [False, True])
@virtual_time
async def test_a_step_that_runs_when_it_dies_is_cut_off(hangs):
    """Whether the engine tells the waiting step of its death or not."""
    async with on_a_mortal_engine() as (stage, engine, pool):
        engine.gate = asyncio.Event()
        await stage.speak((1.5, LOUD))
        engine.dead = True
        engine.gate = None
        if hangs:
            pool.look()
        await stage.speak((1.5, QUIET))
        assert ends(stage) == [(0, EngineCrashed)]
        await asyncio.sleep(RESTART_S + 5)
        await stage.speak((1.5, LOUD), (1.5, QUIET))
        assert [type(text) for _, text in ends(stage)] == [type, str]
