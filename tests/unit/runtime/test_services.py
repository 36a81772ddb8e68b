import asyncio
import time
from contextlib import ExitStack

import pytest

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import SessionConfig, StepKind
from qwen3_asr_server.errors import EngineNotReady, EngineTimeout, InternalError, ShuttingDown
from qwen3_asr_server.messages import (
    AppendBytes,
    Closing,
    Committed,
    Final,
    Finish,
    Finished,
    Rejected,
    UtteranceFailed,
)
from qwen3_asr_server.runtime.admission import Refused
from qwen3_asr_server.runtime.services import Services
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine, FakeStream
from support.live import sound

VAD, MANUAL = SessionConfig(), SessionConfig(turn_detection=None)
UTTERANCE = sound(0.5, 0.0) + sound(1.0, 0.3) + sound(1.5, 0.0)


def settings(**overrides):
    return Settings(_env_file=None, **overrides)


class Running:
    """Started services, and sessions that run until they are over."""

    def __init__(self, engine=None, vad=None, **overrides):
        self.engine = engine or FakeEngine()
        self.later_s = 0.0
        self.services = Services(
            settings(**overrides),
            engine=self.engine,
            vad=vad or EnergyVad(),
            clock=lambda: time.monotonic() + self.later_s,
        )

    async def __aenter__(self):
        await self.services.start()
        return self

    async def __aexit__(self, *_):
        await self.services.stop()
        assert self.engine.open_streams == 0
        assert not self.engine.running
        assert self.services.state == "stopped"

    async def session(self, *commands, opened=None, config=VAD):
        """Run one session; return its events."""
        events = []
        with self.services.open_session(config, events.append) as live:
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


# What newcomers find


async def test_a_lazy_engine_that_could_not_be_loaded_is_not_ready():
    engine = FakeEngine(start_failure=EngineNotReady("no weights in /srv/secret"))
    async with Running(engine, model_loading="lazy") as running:
        services = running.services
        assert (services.status, services.reason) == ("ready", None)
        await running.session(AppendBytes(UTTERANCE), Finish())
        assert not services.ready
        assert services.status == "failed"
        assert services.reason
        assert "/" not in services.reason
        engine.start_failure = None
        await running.session(AppendBytes(UTTERANCE), Finish())
        assert services.ready


async def test_a_full_server_says_so():
    async with Running(max_sessions=1) as running:
        with running.services.open_session(SessionConfig(), print):
            assert running.services.status == "full"
            assert running.services.reason
        assert running.services.ready


async def test_when_the_scheduler_dies_everybody_is_told(caplog):
    engine = FakeEngine(gate=asyncio.Event())
    running = Running(engine)
    await running.services.start()
    opened = asyncio.Event()
    session = asyncio.create_task(running.session(AppendBytes(UTTERANCE), opened=opened))
    await opened.wait()
    running.services._workers.scheduler._expire = None  # a bug in the loop, met at its next turn
    running.services._workers.scheduler._wake.set()
    events = await session
    assert isinstance(events[-1], Closing)
    assert isinstance(events[-1].error, InternalError)
    assert running.services.status == "failed"
    with pytest.raises(Refused), running.services.open_session(SessionConfig(), print):
        pytest.fail("it was let in")
    assert any("scheduler" in record.getMessage() for record in caplog.records)
    await running.services.stop()
    assert not engine.running


# What the settings lead to


async def test_limits_come_from_the_settings():
    engine = FakeEngine(gate=asyncio.Event())
    async with Running(engine, decode_timeout_s=0.01, queue_timeout_s=0.01, finish_timeout_s=9) as running:
        events = await running.session(AppendBytes(sound(0.1, 0.3)), Finish())
        (failed,) = [event for event in events if isinstance(event, UtteranceFailed)]
        assert isinstance(failed.error, EngineTimeout)


def appending(seconds, kind, config=VAD):
    """Count the events of a kind that so much speech leads to."""

    async def observe(**overrides):
        async with Running(**overrides) as running:
            events = await running.session(AppendBytes(sound(seconds, 0.3)), Finish(), config=config)
            return sum(isinstance(event, kind) for event in events)

    return observe


class Metered(FakeEngine):
    """Hears nothing but finals, as many as there are permits."""

    def __init__(self):
        super().__init__(partials=False)
        self.permits = asyncio.Semaphore(0)
        self.asked = {kind: asyncio.Event() for kind in StepKind}

    def open_stream(self, options):
        super().open_stream(options)
        return MeteredStream(self, options)


class MeteredStream(FakeStream):
    async def step(self, audio, kind):
        self.engine.asked[kind].set()
        if kind is StepKind.FINAL:
            await self.engine.permits.acquire()
        return await super().step(audio, kind)


async def push(live, audio):
    await live.submit(AppendBytes(audio))
    await live.room()


def pushing(seconds, *, heard):
    """Tell whether the server reads on after so much audio, of which it has heard some pieces."""

    async def observe(**overrides):
        engine = Metered()
        async with Running(engine, decode_timeout_s=60, **overrides) as running:
            with running.services.open_session(MANUAL, print) as live:
                session = asyncio.create_task(live.run())
                pushed = asyncio.create_task(push(live, sound(seconds, 0.3)))
                async with asyncio.timeout(10):
                    await engine.asked[StepKind.FINAL].wait()
                for _ in range(heard):
                    engine.permits.release()
                done, _ = await asyncio.wait({pushed}, timeout=0.3)
                reads_on = pushed in done
                live.end("test")
                await asyncio.gather(session, pushed)
                return reads_on

    return observe


async def status_when_partials_are_late(**overrides):
    """Let two speak to an engine that skips all partials, for ten seconds."""
    engine = Metered()
    async with Running(engine, **overrides) as running, asyncio.TaskGroup() as group:
        with ExitStack() as inside:
            for _ in range(2):
                live = inside.enter_context(running.services.open_session(VAD, print))
                group.create_task(live.run())
                engine.asked[StepKind.PARTIAL].clear()
                await live.submit(AppendBytes(sound(3.0, 0.3)))
                async with asyncio.timeout(10):
                    await engine.asked[StepKind.PARTIAL].wait()
            assert running.services.status == "ready"
            running.later_s = 10.0
            return running.services.status


@pytest.mark.parametrize(
    ("setting", "value", "observe", "by_default", "expected"),
    [
        ("manual_max_s", 1, appending(2.0, Rejected, MANUAL), 0, 1),
        ("max_append_s", 1, appending(2.0, Rejected), 0, 1),
        ("max_utterance_s", 5, appending(12.0, Committed), 1, 4),
        ("buffer_high_s", 35, pushing(40, heard=0), True, False),
        ("buffer_low_s", 50, pushing(70, heard=1), False, True),
        ("streaming_chunk_size_sec", 20, status_when_partials_are_late, "full", "ready"),
    ],
)
async def test_each_limit_acts(setting, value, observe, by_default, expected):
    assert await observe() == by_default
    assert await observe(**{setting: value}) == expected
