import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import Samples, SessionConfig, Word
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineNotReady
from qwen3_asr_server.messages import Align, Aligned, AppendBytes, Final, Finish
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.aligning import (
    MAX_REQUESTS,
    RECORDED_REQUESTS,
    RECORDED_TIMEOUT_S,
    TIMEOUT_S,
    AlignerDesk,
)
from qwen3_asr_server.runtime.services import Services
from support.clock import clock, settle, virtual_time
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.live import sound


@dataclass
class FakeAligner:
    """Gives every word a tenth of a second; can be told to misbehave."""

    model: str = "fake"
    takes_s: float = 0.01
    failure: Exception | None = None
    dead: bool = False
    starts: int = 0
    refused_starts: int = 0
    running: bool = False
    asked: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.starts += 1
        if self.refused_starts:
            self.refused_starts -= 1
            raise EngineNotReady("not now")
        self.running, self.dead = True, False

    async def stop(self) -> None:
        self.running = False

    async def align(self, audio: Samples, text: str, language: str | None) -> Sequence[Word]:
        self.asked.append(text)
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        if self.failure is not None:
            raise self.failure
        return [Word(word, 1600 * n, 1600 * n + 1600) for n, word in enumerate(text.split())]


class Desk:
    """A desk, and what it has delivered."""

    def __init__(self, **traits):
        self.aligner = FakeAligner(**traits)
        self.metrics = Metrics()
        self.desk = AlignerDesk(self.aligner, self.metrics, clock)
        self.told: list[Aligned] = []

    async def __aenter__(self):
        await self.desk.start()
        return self

    async def __aexit__(self, *_):
        await self.desk.stop()
        assert not self.aligner.running
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def ask(self, text="one two", piece=0, upto=16_000, *, recorded=False):
        self.desk.submit(
            Align(piece, upto, np.zeros(upto, np.float32), text, "en"), self.told.append, recorded=recorded
        )

    def count(self, result):
        return self.metrics.registry.get_sample_value("asr_alignments_total", {"result": result}) or 0


@virtual_time
async def test_words_are_delivered_and_timed():
    async with Desk() as desk:
        desk.ask()
        await asyncio.sleep(1)
        assert desk.told == [Aligned(0, 16_000, [Word("one", 0, 1600), Word("two", 1600, 3200)])]
        assert desk.count("placed") == 1
        assert desk.metrics.registry.get_sample_value("asr_align_seconds_sum") == pytest.approx(0.01)


@virtual_time
async def test_many_are_asked_at_once():
    async with Desk(takes_s=1.0) as desk:
        for piece in range(20):
            desk.ask(piece=piece)
        await asyncio.sleep(1.1)
        assert sorted(told.piece for told in desk.told) == list(range(20))


@virtual_time
async def test_a_later_request_of_a_piece_replaces_the_earlier():
    async with Desk(takes_s=1.0) as desk:
        desk.ask("one", upto=1600)
        await settle()
        desk.ask("one two", upto=3200)
        await asyncio.sleep(2)
        assert [told.upto for told in desk.told] == [3200]
        assert desk.aligner.cancelled == ["one"]


@virtual_time
@pytest.mark.parametrize(
    ("traits", "result"),
    [
        ({"failure": EngineError("no")}, "failed"),
        ({"failure": RuntimeError("a fault of ours")}, "failed"),
        ({"takes_s": TIMEOUT_S + 1}, "timeout"),
    ],
)
async def test_a_failure_is_an_answer_without_words(traits, result):
    async with Desk(**traits) as desk:
        desk.ask()
        await asyncio.sleep(TIMEOUT_S + 2)
        assert desk.told == [Aligned(0, 16_000, ())]
        assert desk.count(result) == 1


@virtual_time
async def test_a_language_it_does_not_know_is_counted_apart():
    async with Desk() as desk:
        desk.ask("")
        await asyncio.sleep(1)
        assert (desk.told[0].words, desk.count("unsupported")) == ([], 1)


@virtual_time
async def test_too_many_are_answered_at_once():
    async with Desk(takes_s=1.0) as desk:
        for piece in range(MAX_REQUESTS + 3):
            desk.ask(piece=piece)
        assert [told.piece for told in desk.told] == [MAX_REQUESTS, MAX_REQUESTS + 1, MAX_REQUESTS + 2]
        assert desk.count("refused") == 3


@virtual_time
async def test_recordings_that_wait_for_their_turn_take_no_room_from_live_sessions():
    async with Desk(takes_s=1.0) as desk:
        for piece in range(MAX_REQUESTS + 3):
            desk.ask(piece=piece, recorded=True)
        desk.ask("live", piece=1000)
        await asyncio.sleep(1.01)
        assert [len(told.words) for told in desk.told if told.piece == 1000] == [1]
        assert desk.count("refused") == 0


@virtual_time
async def test_however_many_wait_each_text_of_a_recording_has_its_turn():
    async with Desk(takes_s=RECORDED_TIMEOUT_S - 1) as desk:
        for piece in range(3 * RECORDED_REQUESTS):
            desk.ask(piece=piece, recorded=True)
        await asyncio.sleep(3 * RECORDED_TIMEOUT_S)
        assert [len(told.words) for told in desk.told] == [2] * 3 * RECORDED_REQUESTS
        desk.aligner.takes_s = RECORDED_TIMEOUT_S + 1
        desk.ask(piece=100, recorded=True)
        await asyncio.sleep(RECORDED_TIMEOUT_S + 2)
        assert desk.count("timeout") == 1


@virtual_time
async def test_nothing_runs_for_a_session_that_is_over():
    async with Desk(takes_s=1.0) as desk:
        desk.ask("mine")
        desk.desk.submit(Align(0, 80, np.zeros(80, np.float32), "another's", None), print)
        await settle()
        desk.desk.forget(desk.told.append)
        await settle()
        assert desk.aligner.cancelled == ["mine"]


@virtual_time
async def test_what_a_stop_gives_up_is_answered_without_words():
    """The aligner goes with an engine that cannot be started again; recordings wait for it all the same."""
    async with Desk(takes_s=1.0) as desk:
        for piece in range(RECORDED_REQUESTS + 1):
            desk.ask(piece=piece, recorded=True)
        await settle()
        desk.ask(piece=100)  # not even begun
        await desk.desk.stop()
        assert {told.piece: told.words for told in desk.told} == dict.fromkeys([*range(RECORDED_REQUESTS + 1), 100], ())
        desk.ask(recorded=True)
        assert len(desk.told) == RECORDED_REQUESTS + 3, "refused, and told so"


@virtual_time
async def test_a_dead_aligner_is_started_again():
    async with Desk(failure=EngineCrashed("gone")) as desk:
        desk.aligner.dead, desk.aligner.refused_starts = True, 2
        desk.ask()
        await asyncio.sleep(0.02)
        desk.ask(piece=1)
        assert desk.count("refused") == 1
        desk.aligner.failure = None
        await asyncio.sleep(5)
        assert desk.aligner.starts == 4
        desk.ask(piece=2)
        await asyncio.sleep(1)
        assert desk.told[-1].words


@virtual_time
async def test_stopping_ends_a_restart_that_does_not_succeed():
    async with Desk(failure=EngineCrashed("gone")) as desk:
        desk.aligner.dead, desk.aligner.refused_starts = True, 1000
        desk.ask()
        await asyncio.sleep(60)


@virtual_time
async def test_a_desk_that_was_stopped_can_be_started_again():
    async with Desk(failure=EngineCrashed("gone")) as desk:
        desk.aligner.dead, desk.aligner.refused_starts = True, 1000
        desk.ask()
        await asyncio.sleep(10)
        await desk.desk.stop()
        desk.ask(piece=1)
        assert desk.count("refused") == 1
        desk.aligner.failure, desk.aligner.refused_starts = None, 0
        await desk.desk.start()
        starts = desk.aligner.starts
        await desk.desk.start()
        assert desk.aligner.starts == starts, "it was there"
        desk.ask(piece=2)
        await asyncio.sleep(1)
        assert desk.told[-1].words


# In the server


def services(aligner, engine=None, **overrides):
    settings = Settings(_env_file=None, **overrides)
    return Services(settings, engine=engine or FakeEngine(word_times=False), vad=EnergyVad(), aligner=aligner)


async def finals_of(running, config):
    events = []
    with running.open_session(config, events.append) as live:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(live.run())
            await live.submit(AppendBytes(sound(0.5, 0.0) + sound(1.0, 0.3) + sound(1.5, 0.0)))
            await live.submit(Finish())
    return [event for event in events if isinstance(event, Final)]


@pytest.mark.parametrize("wanted", [True, False])
async def test_sessions_get_the_words_they_ask_for(wanted):
    aligner = FakeAligner()
    running = services(aligner)
    await running.start()
    assert running.engine_info.word_times
    (final,) = await finals_of(running, SessionConfig(words=wanted))
    await running.stop()
    assert bool(final.words) is wanted
    assert bool(aligner.asked) is wanted
    assert not aligner.running


async def test_a_final_without_its_words_is_counted():
    running = services(FakeAligner(failure=EngineError("no")))
    await running.start()
    (final,) = await finals_of(running, SessionConfig(words=True))
    assert (bool(final.text), final.words) == (True, None)
    assert running.metrics.registry.get_sample_value("asr_words_missed_total") == 1
    await running.stop()


async def test_an_engine_with_word_times_needs_no_aligner():
    aligner = FakeAligner()
    running = services(aligner, FakeEngine())
    await running.start()
    assert running.aligner is None
    assert aligner.starts == 0
    await running.stop()


async def test_an_aligner_is_loaded_and_unloaded_with_the_model():
    aligner = FakeAligner()
    running = services(aligner, model_loading="lazy")
    await running.start()
    assert aligner.starts == 0
    for starts in (1, 2):
        (final,) = await finals_of(running, SessionConfig(words=True))
        assert final.words
        assert (aligner.starts, aligner.running) == (starts, True)
        assert await running.pool.release()
        assert not aligner.running
    await running.stop()


async def test_an_aligner_that_cannot_start_ends_the_server():
    running = services(FakeAligner(refused_starts=1))
    with pytest.raises(EngineNotReady):
        await running.start()
    assert running.state == "failed"
    await running.stop()
