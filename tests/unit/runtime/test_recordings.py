"""Recordings as the services admit, watch and end them."""

import asyncio
from contextlib import ExitStack

import pytest

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import EngineInfo, TurnDetection
from qwen3_asr_server.errors import InvalidValue, ShuttingDown
from qwen3_asr_server.runtime.admission import Refused
from qwen3_asr_server.runtime.from_settings import scheduler_options
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.session.recorded import TranscribeOptions
from support.clock import settle
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.recorded import MemoryMedia, tones

OPTIONS = TranscribeOptions()
AUDIO = tones((0.5, 0.0), (1.0, 0.3), (1.0, 0.0), (1.0, 0.5), (1.0, 0.0))


class GatedEngine(FakeEngine):
    """Steps wait at a gate, and say that they have begun."""

    def __init__(self):
        super().__init__(gate=asyncio.Event())
        self.begun = asyncio.Event()

    def open_stream(self, options):
        self.begun.set()
        return super().open_stream(options)


class Running:
    """Started services; afterwards nothing is held."""

    def __init__(self, engine=None, **overrides):
        self.engine = engine or FakeEngine()
        self.services = Services(Settings(_env_file=None, **overrides), engine=self.engine, vad=EnergyVad())

    async def __aenter__(self):
        await self.services.start()
        return self.services

    async def __aexit__(self, *_):
        await self.services.stop()
        assert self.engine.open_streams == 0
        assert len(self.services.recordings) == 0
        assert self.services.pool.leases.count == 0


async def test_a_recording_is_transcribed_and_counted():
    async with Running() as services:
        told = []
        transcript = await services.transcribe(MemoryMedia(AUDIO), OPTIONS, lambda *at: told.append(at))
        assert len(transcript.segments) == 2
        assert told[-1] == (4.5, 4.5)
        value = services.metrics.registry.get_sample_value
        assert value("asr_recordings_total", {"result": "finished"}) == 1
        assert value("asr_recorded_seconds_total") == 4.5
        assert value("asr_recordings_open") == 0
        assert services.stats()["recordings"] == {"open": 0, "max": 16}


async def test_more_are_told_to_come_back():
    async with Running(max_recordings=2) as services:
        with ExitStack() as inside:
            for _ in range(2):
                inside.enter_context(services.open_recording(MemoryMedia(AUDIO), OPTIONS))
            with pytest.raises(Refused):
                await services.transcribe(MemoryMedia(AUDIO), OPTIONS)
            assert services.ready, "live sessions are let in all the same"
        assert services.metrics.registry.get_sample_value("asr_recordings_total", {"result": "aborted"}) == 2


async def test_who_opened_a_recording_and_leaves_holds_nothing_any_more():
    engine = GatedEngine()
    async with Running(engine) as services:
        with services.open_recording(MemoryMedia(AUDIO), OPTIONS) as recording:
            reading = asyncio.create_task(anext(recording.segments()))
            await engine.begun.wait()
            assert engine.open_streams
        await settle()
        assert engine.open_streams == 0
        reading.cancel()
        await asyncio.wait({reading})


async def test_a_language_that_the_model_does_not_know_is_refused_at_once():
    async with Running() as services:
        with pytest.raises(InvalidValue) as refused:
            await services.transcribe(MemoryMedia(AUDIO * 0), TranscribeOptions(language="tlh"))
        assert refused.value.param == "language"


async def test_the_threshold_is_that_of_the_settings_unless_said():
    async with Running(vad_threshold=0.94) as services:
        with services.open_recording(MemoryMedia(AUDIO), OPTIONS) as recording:
            assert recording._options.turn_detection == TurnDetection(threshold=0.94)
        asked = TurnDetection(silence_ms=400)
        with services.open_recording(MemoryMedia(AUDIO), TranscribeOptions(turn_detection=asked)) as recording:
            assert recording._options.turn_detection == asked


async def test_draining_lets_it_finish():
    engine = GatedEngine()
    async with Running(engine) as services:
        running = asyncio.create_task(services.transcribe(MemoryMedia(AUDIO), OPTIONS))
        async with asyncio.timeout(10):
            await engine.begun.wait()
            draining = asyncio.create_task(services.drain(10))
            await asyncio.sleep(0)
            with pytest.raises(ShuttingDown):
                await services.transcribe(MemoryMedia(AUDIO), OPTIONS)
            engine.gate.set()
            assert len((await running).segments) == 2
            await draining


async def test_stopping_does_not():
    engine = GatedEngine()
    async with Running(engine) as services:
        running = asyncio.create_task(services.transcribe(MemoryMedia(AUDIO), OPTIONS))
        async with asyncio.timeout(10):
            await engine.begun.wait()
            await services.drain(0)
            with pytest.raises(ShuttingDown):
                await running


@pytest.mark.parametrize(("streams", "recorded"), [(None, 16), (1, 1), (2, 1), (3, 1), (4, 2), (64, 2)])
def test_file_work_takes_at_most_two_decoders_and_half_of_them(streams, recorded):
    info = EngineInfo("x", "x", "x", frozenset(), "en", production=False, max_streams=streams)
    assert scheduler_options(Settings(_env_file=None), info).max_recorded == recorded
