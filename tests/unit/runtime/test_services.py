import asyncio
from contextlib import ExitStack

import pytest

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import SessionConfig
from qwen3_asr_server.errors import EngineNotReady, EngineTimeout, ShuttingDown
from qwen3_asr_server.messages import AppendBytes, Closing, Final, Finish, Finished, UtteranceFailed
from qwen3_asr_server.runtime.admission import Refused
from qwen3_asr_server.runtime.services import Services
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.live import sound

UTTERANCE = sound(0.5, 0.0) + sound(1.0, 0.3) + sound(1.5, 0.0)


def settings(**overrides):
    return Settings(_env_file=None, **overrides)


class Running:
    """Started services, and sessions that run until they are over."""

    def __init__(self, engine=None, vad=None, **overrides):
        self.engine = engine or FakeEngine()
        self.services = Services(settings(**overrides), engine=self.engine, vad=vad or EnergyVad())

    async def __aenter__(self):
        await self.services.start()
        return self

    async def __aexit__(self, *_):
        await self.services.stop()
        assert self.engine.open_streams == 0
        assert not self.engine.running
        assert self.services.state == "stopped"

    async def session(self, *commands, opened=None):
        """Run one session; return its events."""
        events = []
        with self.services.open_session(SessionConfig(), events.append) as live:
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                group.create_task(live.run())
                for command in commands:
                    await live.submit(command)
                if opened is not None:
                    opened.set()
        return events


def texts(events):
    return [event.text for event in events if isinstance(event, Final)]


async def test_sessions_are_served_with_the_batched_detector():
    async with Running() as running:
        assert running.services.ready
        several = await asyncio.gather(*(running.session(AppendBytes(UTTERANCE), Finish()) for _ in range(5)))
        assert len({tuple(texts(events)) for events in several}) == 1
        assert all(texts(events) for events in several)
        stats = running.services.stats()
        assert stats["sessions"] == {"open": 0, "max": 128}
        assert stats["latency"]["final_ms_p95"] > 0
        value = running.services.metrics.registry.get_sample_value
        assert value("asr_vad_batch_rows_count") > 0
        assert value("asr_sessions_open") == 0
        assert value("asr_buffered_audio_seconds") == 0


async def test_stopping_twice_or_without_start_is_harmless():
    services = Services(settings(), engine=FakeEngine(), vad=EnergyVad())
    await services.stop()
    await services.stop()


# Refusals


@pytest.mark.parametrize(
    ("overrides", "keys", "reason"),
    [({"max_sessions": 2}, [None, "a"], "sessions"), ({"max_sessions_per_key": 1}, ["b"], "key")],
)
async def test_over_a_limit_nobody_is_let_in(overrides, keys, reason):
    async with Running(**overrides) as running:
        with ExitStack() as inside:
            for key in keys:
                inside.enter_context(running.services.open_session(SessionConfig(), print, key_id=key))
            newcomer = running.services.open_session(SessionConfig(), print, key_id="b")
            with pytest.raises(Refused):
                inside.enter_context(newcomer)
        assert running.services.admission.in_use == 0
        value = running.services.metrics.registry.get_sample_value
        assert value("asr_sessions_refused_total", {"reason": reason}) == 1


async def test_nobody_is_let_in_before_the_start():
    services = Services(settings(), engine=FakeEngine(), vad=EnergyVad())
    with pytest.raises(Refused), services.open_session(SessionConfig(), print):
        pytest.fail("it was let in")
    await services.stop()


# Loading


async def test_an_engine_that_cannot_start_ends_the_start_with_the_reason():
    engine = FakeEngine(start_failure=EngineNotReady("no weights"))
    services = Services(settings(), engine=engine, vad=EnergyVad())
    with pytest.raises(EngineNotReady, match="no weights"):
        await services.start()
    assert services.state == "failed"
    await services.stop()
    assert services.state == "failed"


async def test_an_unknown_engine_is_named_at_once():
    with pytest.raises(EngineNotReady, match="nonesuch"):
        Services(settings(engine="nonesuch"), vad=EnergyVad())


async def test_a_detector_that_cannot_load_ends_the_start(monkeypatch):
    def broken(name="silero"):
        raise EngineNotReady("the Silero VAD cannot be loaded")

    monkeypatch.setattr("qwen3_asr_server.runtime.services.load_vad", broken)
    services = Services(settings(), engine=FakeEngine())
    with pytest.raises(EngineNotReady, match="Silero"):
        await services.start()
    assert services.state == "failed"
    await services.stop()


class SlowEngine(FakeEngine):
    """Counts its starts, which take until `loaded` is set."""

    def __init__(self):
        super().__init__()
        self.starts = 0
        self.loaded = asyncio.Event()

    async def start(self):
        self.starts += 1
        await self.loaded.wait()
        await super().start()


async def test_a_lazy_engine_is_loaded_once_by_the_first_who_come():
    engine = SlowEngine()
    async with Running(engine, model_loading="lazy") as running:
        assert running.services.ready
        assert not engine.running
        opened = [asyncio.Event() for _ in range(3)]
        sessions = [
            asyncio.create_task(running.session(AppendBytes(UTTERANCE), Finish(), opened=event)) for event in opened
        ]
        for event in opened:
            await event.wait()
        engine.loaded.set()
        for events in await asyncio.gather(*sessions):
            assert texts(events)
        assert engine.starts == 1
        assert texts(await running.session(AppendBytes(UTTERANCE), Finish()))
        assert engine.starts == 1


async def test_a_lazy_engine_that_failed_is_tried_again_by_the_next():
    engine = FakeEngine(start_failure=EngineNotReady("no weights"))
    async with Running(engine, model_loading="lazy") as running:
        events = await running.session(AppendBytes(UTTERANCE), Finish())
        (failed,) = [event for event in events if isinstance(event, UtteranceFailed)]
        assert failed.error.message == "no weights"
        assert isinstance(events[-1], Finished)
        engine.start_failure = None
        assert texts(await running.session(AppendBytes(UTTERANCE), Finish()))


# Draining


async def test_draining_lets_live_sessions_have_their_finals():
    engine = FakeEngine(gate=asyncio.Event())
    async with Running(engine) as running:
        opened = asyncio.Event()
        session = asyncio.create_task(running.session(AppendBytes(UTTERANCE), opened=opened))
        await opened.wait()
        draining = asyncio.create_task(running.services.drain(timeout_s=5))
        await asyncio.sleep(0)
        assert running.services.state == "draining"
        assert not running.services.ready
        with pytest.raises(ShuttingDown), running.services.open_session(SessionConfig(), print):
            pytest.fail("it was let in")
        engine.gate.set()
        await draining
        events = await session
        assert texts(events)
        assert isinstance(events[-1], Finished)


async def test_draining_has_a_deadline():
    engine = FakeEngine(gate=asyncio.Event())
    async with Running(engine) as running:
        opened = asyncio.Event()
        session = asyncio.create_task(running.session(AppendBytes(UTTERANCE), opened=opened))
        await opened.wait()
        await running.services.drain(timeout_s=0.05)
        events = await session
        assert isinstance(events[-1], Closing)
        assert not texts(events)


async def test_stopping_ends_what_still_lives():
    engine = FakeEngine(gate=asyncio.Event())
    running = Running(engine)
    await running.services.start()
    opened = asyncio.Event()
    session = asyncio.create_task(running.session(AppendBytes(UTTERANCE), opened=opened))
    await opened.wait()
    await running.services.stop()
    assert isinstance((await session)[-1], Closing)
    assert engine.open_streams == 0


# What the settings lead to


async def test_limits_come_from_the_settings():
    engine = FakeEngine(gate=asyncio.Event())
    async with Running(engine, decode_timeout_s=0.01, queue_timeout_s=0.01, finish_timeout_s=9) as running:
        events = await running.session(AppendBytes(sound(0.1, 0.3)), Finish())
        (failed,) = [event for event in events if isinstance(event, UtteranceFailed)]
        assert isinstance(failed.error, EngineTimeout)
