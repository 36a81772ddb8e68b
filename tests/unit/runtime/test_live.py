import asyncio
import logging
from dataclasses import replace

import pytest

from qwen3_asr_server.audio.decoder import HEAVY_BYTES
from qwen3_asr_server.domain import AudioEncoding, AudioFormat, SessionConfig, StepKind
from qwen3_asr_server.errors import EngineError, IdleTimeout, InternalError, InvalidAudio, ShuttingDown
from qwen3_asr_server.messages import (
    AppendBytes,
    Clear,
    Cleared,
    Closing,
    Commit,
    Committed,
    Configure,
    Disconnect,
    Final,
    Finish,
    Finished,
    Partial,
    Rejected,
    SpeechStarted,
    SpeechStopped,
    UtteranceFailed,
)
from qwen3_asr_server.runtime.live import SLICE_SAMPLES, LiveSession
from qwen3_asr_server.runtime.scheduler import SchedulerOptions
from qwen3_asr_server.session.options import SessionOptions
from support.clock import clock, settle, virtual_time
from support.fake_engine import FakeEngine
from support.live import DirectVad, sound, staged
from support.steps import HeldEngine

UTTERANCE = (0.5, 0.0), (2.0, 0.3), (1.5, 0.0)
MANUAL = SessionConfig(turn_detection=None)


@virtual_time
async def test_an_utterance_in_vad_mode():
    engine = FakeEngine()
    async with staged(engine) as stage:
        await stage.speak(*UTTERANCE)
        await stage.live.submit(Finish())
        await stage.running
        kinds = [type(event) for event in stage.events if not isinstance(event, Partial)]
        assert kinds == [SpeechStarted, SpeechStopped, Committed, Final, Finished]
        assert stage.of(Partial)
        assert stage.of(Final)[0].text
        assert engine.open_streams == 0
        assert stage.value("asr_sessions_total", reason="finished") == 1
        assert stage.value("asr_utterances_total", result="recognised") == 1
        assert stage.value("asr_audio_received_seconds_total") == pytest.approx(4.0)


@virtual_time
async def test_manual_mode():
    async with staged(FakeEngine(), MANUAL) as stage:
        await stage.speak((2.0, 0.3))
        await stage.live.submit(Commit("event_1"))
        await stage.live.submit(Commit("event_2"))
        await stage.live.submit(Finish())
        await stage.running
        (rejected,) = stage.of(Rejected)
        assert rejected.event_id == "event_2"
        assert len(stage.of(Committed)) == len(stage.of(Final)) == 1
        assert stage.value("asr_final_latency_seconds_count", since="commit") == 1


@virtual_time
async def test_latencies_are_measured_from_what_was_received():
    async with staged(HeldEngine(step_s=0.25), vad=DirectVad(score_s=0.01)) as stage:
        await stage.speak((0.5, 0.0), (2.0, 0.3), (1.5, 0.0))
        await asyncio.sleep(1)
        value = stage.value
        assert value("asr_first_partial_seconds_count") == 1
        assert 0.25 < value("asr_first_partial_seconds_sum") < 1.0
        # The endpoint comes 800 ms after the speech; the candidate was wrong (`final` is not set), so the final ran.
        assert value("asr_final_latency_seconds_sum", since="endpoint") == pytest.approx(0.25, abs=0.01)
        assert value("asr_final_latency_seconds_sum", since="speech_end") == pytest.approx(1.05, abs=0.12)
        assert value("asr_vad_lag_seconds_count") == 40
        assert value("asr_vad_lag_seconds_sum") == pytest.approx(0.4, abs=0.001)
        assert value("asr_decode_seconds_sum", kind="final") == pytest.approx(0.25)


# A client that vanishes


@pytest.mark.parametrize("kind", [StepKind.PARTIAL, StepKind.CANDIDATE, StepKind.FINAL])
def test_a_vanishing_client_aborts_what_runs_for_it(kind):
    @virtual_time
    async def run():
        engine = HeldEngine(step_s=0.5)
        async with staged(engine) as stage:
            speaking = asyncio.ensure_future(stage.speak((0.5, 0.0), (2.5, 0.3), (6, 0.0)))
            async with asyncio.timeout(30):
                await engine.begun[kind].wait()
            await stage.live.submit(Disconnect())
            await settle()
            assert not engine.running
            assert engine.opened == engine.closed > 0
            assert stage.running.done()
            before = list(stage.events)
            await speaking
            assert stage.events == before
            assert stage.value("asr_sessions_total", reason="disconnected") == 1

    run()


@virtual_time
async def test_a_cancelled_session_gives_everything_back():
    engine = HeldEngine(step_s=5.0)
    async with staged(engine) as stage:
        await stage.speak((0.5, 0.0), (2.0, 0.3))
        assert engine.running
        stage.running.cancel()
        await settle()
        assert not engine.running
        assert engine.opened == engine.closed
        assert stage.value("asr_sessions_total", reason="aborted") == 1


@virtual_time
async def test_ending_does_not_wait_for_the_detector():
    async with staged(FakeEngine(), vad=DirectVad(score_s=5.0)) as stage:
        await stage.speak((0.5, 0.3))
        began = clock()
        stage.live.end("shutdown", ShuttingDown("going away"))
        assert isinstance(stage.events[-1], Closing)
        await stage.running
        assert clock() - began <= 5.0


# Audio


@virtual_time
async def test_audio_that_cannot_be_read_is_rejected_and_the_session_lives():
    async with staged(FakeEngine(), max_append_s=5.0) as stage:
        await stage.live.submit(AppendBytes(sound(6.0, 0.3), "event_7"))
        (rejected,) = stage.of(Rejected)
        assert isinstance(rejected.error, InvalidAudio)
        assert rejected.event_id == "event_7"
        await stage.speak(*UTTERANCE)
        await stage.live.submit(Finish())
        await stage.running
        assert len(stage.of(Final)) == 1


def test_long_audio_is_heard_a_little_at_a_time(monkeypatch):
    heard, turns = [], 0
    hear = LiveSession._hear

    def noting(live, append):
        heard.append((turns, len(append.samples)))
        hear(live, append)

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    @virtual_time
    async def run():
        async with staged(FakeEngine(), MANUAL) as stage:
            busy = asyncio.create_task(others())
            await stage.live.submit(AppendBytes(sound(100.0, 0.3)))
            busy.cancel()
            await asyncio.wait({busy})
            assert stage.value("asr_audio_received_seconds_total") == pytest.approx(100.0)

    monkeypatch.setattr(LiveSession, "_hear", noting)
    run()
    assert sum(samples for _, samples in heard) == 1_600_000
    assert max(samples for _, samples in heard) == SLICE_SAMPLES
    assert len({turn for turn, _ in heard}) == len(heard), "others have a turn between any two slices"


@virtual_time
async def test_one_long_append_is_slowed_down_as_many_short_ones_are():
    async with staged(HeldEngine(step_s=5.0), MANUAL, buffer_high_s=60) as stage:
        pushing = asyncio.create_task(stage.live.submit(AppendBytes(sound(300.0, 0.3))))
        done, _ = await asyncio.wait({pushing}, timeout=1)
        assert not done
        assert 60 <= stage.live.buffered_samples / 16_000 <= 68
        stage.live.end("test")
        await pushing


@virtual_time
async def test_a_heavy_append_keeps_its_place():
    """It is decoded in a thread; what is submitted meanwhile comes after it."""
    async with staged(FakeEngine(), MANUAL) as stage:
        heavy = AppendBytes(sound(12.0, 0.3))
        assert len(heavy.data) > HEAVY_BYTES
        await asyncio.gather(
            stage.live.submit(heavy), stage.live.submit(Commit()), stage.live.submit(Finish()), stage.running
        )
        assert not stage.of(Rejected)
        assert len(stage.of(Final)[0].text.split()) == pytest.approx(12 / 0.32, abs=2)


@virtual_time
async def test_a_new_audio_format_gets_a_new_decoder():
    async with staged(FakeEngine(), MANUAL) as stage:
        await stage.live.submit(AppendBytes(sound(1.0, 0.3)))
        slow = replace(MANUAL, audio=AudioFormat(AudioEncoding.PCM, 8_000))
        await stage.live.submit(Configure(slow))
        await stage.live.submit(AppendBytes(sound(1.0, 0.3)))
        await stage.live.submit(Commit())  # what the resampler holds back belongs to it
        assert stage.value("asr_audio_received_seconds_total") == pytest.approx(3.0, abs=0.01)


@virtual_time
async def test_clear_also_clears_the_decoder():
    async with staged(FakeEngine(), MANUAL) as stage:
        await stage.live.submit(AppendBytes(b"\x01"))  # half a sample
        await stage.live.submit(Clear())
        await settle()
        assert stage.of(Cleared)
        await stage.live.submit(AppendBytes(sound(1.0, 0.3)))
        await stage.live.submit(Commit())
        await stage.live.submit(Finish())
        await stage.running
        assert stage.value("asr_audio_received_seconds_total") == 1.0
        assert stage.of(Final)[0].text


# Back-pressure


@virtual_time
async def test_reading_pauses_above_the_high_mark_until_the_low_one():
    engine = HeldEngine(step_s=4.0)
    async with staged(engine, MANUAL, buffer_high_s=60, buffer_low_s=30) as stage:
        await stage.live.submit(AppendBytes(sound(50.0, 0.3)))
        began = clock()
        await stage.live.room()
        assert clock() == began
        for _ in range(2):  # none is long enough to be waited for while it is heard
            await stage.live.submit(AppendBytes(sound(8.0, 0.3)))
        assert clock() == began
        await stage.live.room()
        assert clock() > began
        assert stage.live.buffered_samples <= 30 * 16_000


@virtual_time
async def test_reading_goes_on_when_nothing_runs_that_would_free_room():
    async with staged(FakeEngine(), MANUAL, buffer_high_s=0.3, buffer_low_s=0.1) as stage:
        await stage.speak((0.52, 0.3))
        await asyncio.sleep(1)
        assert not stage.running.done()
        async with asyncio.timeout(5):
            await stage.live.room()


@virtual_time
async def test_reading_pauses_while_many_commands_wait_for_their_place():
    """They need no audio to speak of, so that seconds of it would not stop their flood."""
    async with staged(FakeEngine(), MANUAL, vad=DirectVad(score_s=0.1), max_waiting_commands=8) as stage:
        most = 0
        for _ in range(100):
            await stage.live.submit(AppendBytes(b"\0\0"))
            await stage.live.submit(Commit())
            await stage.live.room()
            most = max(most, stage.live._machine.waiting_commands)
        assert most == 8
        await stage.live.submit(Finish())
        await stage.running
        assert len(stage.of(Committed)) == 100
        assert not stage.of(Rejected)


@virtual_time
async def test_a_paused_reader_is_not_idle_and_disconnects_end_the_pause():
    engine = HeldEngine(step_s=1e6)
    options = SessionOptions(idle_timeout_s=20)
    limits = SchedulerOptions(step_timeout_s=1e6)
    async with staged(engine, MANUAL, session=options, scheduling=limits, buffer_high_s=5, buffer_low_s=1) as stage:
        await stage.live.submit(AppendBytes(sound(8.0, 0.3)))
        waiting = asyncio.ensure_future(stage.live.room())
        await asyncio.sleep(500)
        assert not waiting.done()
        assert not stage.live.over
        stage.live.end("shutdown")
        async with asyncio.timeout(1):
            await waiting


# Time


@virtual_time
async def test_a_silent_client_is_closed():
    async with staged(FakeEngine(), session=SessionOptions(idle_timeout_s=20)) as stage:
        await asyncio.sleep(15)
        stage.live.touch()
        began = clock()
        await stage.running
        assert clock() - began == pytest.approx(20)
        (closing,) = stage.of(Closing)
        assert isinstance(closing.error, IdleTimeout)
        assert stage.value("asr_sessions_total", reason="idle") == 1


@virtual_time
async def test_finish_has_a_deadline():
    engine = HeldEngine(step_s=1e6)
    limits = SchedulerOptions(step_timeout_s=1e6)
    async with staged(engine, session=SessionOptions(finish_timeout_s=30), scheduling=limits) as stage:
        await stage.speak((0.5, 0.0), (1.0, 0.3))
        await stage.live.submit(Finish())
        began = clock()
        await stage.running
        assert clock() - began == pytest.approx(30, abs=1)
        assert [type(event) for event in stage.events[-2:]] == [UtteranceFailed, Finished]
        await settle()
        assert engine.opened == engine.closed


# Faults


def test_a_fault_ends_the_session_with_an_id_and_keeps_the_trace_in_the_log(caplog):
    events = []

    def emit(event):
        events.append(event)
        if isinstance(event, SpeechStarted):
            raise RuntimeError("/home/secret/path")

    @virtual_time
    async def run():
        async with staged(FakeEngine(), emit=emit) as stage:
            await stage.speak(*UTTERANCE)
            await stage.running
            assert stage.value("asr_sessions_total", reason="error") == 1

    run()
    closing = events[-1]
    assert isinstance(closing, Closing)
    assert isinstance(closing.error, InternalError)
    assert "secret" not in closing.error.message
    (failure,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert failure.error_id in closing.error.message
    assert "secret" in str(failure.exc_info[1])


@virtual_time
async def test_a_failing_detector_ends_the_session():
    async with staged(FakeEngine(), vad=DirectVad(failure=RuntimeError("no weights"))) as stage:
        await stage.speak((0.5, 0.3))
        await stage.running
        assert isinstance(stage.events[-1].error, InternalError)


@virtual_time
async def test_a_detector_that_never_answers_ends_the_session():
    async with staged(FakeEngine(), vad=DirectVad(score_s=1e6)) as stage:
        await stage.speak((0.5, 0.3))
        await stage.running
        assert isinstance(stage.events[-1].error, InternalError)


@virtual_time
async def test_a_failed_utterance_leaves_the_session_alive():
    engine = FakeEngine(partials=False)
    engine.failures.extend(EngineError("unintelligible") for _ in range(9))
    async with staged(engine) as stage:
        await stage.speak(*UTTERANCE)
        await asyncio.sleep(1)
        assert len(stage.of(UtteranceFailed)) == 1
        engine.failures.clear()
        await stage.speak(*UTTERANCE)
        await stage.live.submit(Finish())
        await stage.running
        assert len(stage.of(Final)) == 1
        assert stage.value("asr_utterances_total", result="failed") == 1


# What the log says


@pytest.mark.parametrize("allowed", [False, True])
def test_transcripts_reach_the_log_only_when_allowed(allowed, caplog):
    @virtual_time
    async def run():
        async with staged(FakeEngine(), log_transcripts=allowed) as stage:
            await stage.speak(*UTTERANCE)
            await stage.live.submit(Finish())
            await stage.running
            text = stage.of(Final)[0].text
            logged = [str(vars(record)) for record in caplog.records]
            assert any(text in record for record in logged) is allowed

    with caplog.at_level(logging.INFO):
        run()
    opened, *_, closed = [r for r in caplog.records if r.name.startswith("qwen3_asr_server")]
    assert opened.getMessage() == "session opened"
    assert closed.getMessage() == "session closed"
    assert (closed.reason, closed.audio_s, closed.utterances) == ("finished", 4.0, 1)
    assert closed.final_ms_p95 >= closed.final_ms_p50 > 0
