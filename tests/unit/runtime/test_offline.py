"""Recordings in virtual time: order, concurrency, contexts, failures, and that everything is given back."""

import asyncio
import traceback
from collections import deque
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.domain import SAMPLE_RATE, Hypothesis, StepKind, TurnDetection, Word
from qwen3_asr_server.errors import (
    EngineCrashed,
    EngineError,
    EngineNotReady,
    EngineTimeout,
    InternalError,
    InvalidValue,
    ShuttingDown,
)
from qwen3_asr_server.runtime.offline import MAX_PIECES, RETRY_AFTER_S, Recording
from qwen3_asr_server.runtime.scheduler import SchedulerOptions
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.context import PREVIOUS_CHARS
from support.clock import clock, settle, virtual_time
from support.fake_engine import FakeEngine, FakeStream, Fatal
from support.recorded import MemoryMedia, studio, tones

ATTEMPTS = 1 + len(RETRY_AFTER_S)
PAUSE = (1.0, 0.0)


def utterances(count, seconds=2.0):
    """Return speech of different loudness with pauses between."""
    parts = [(0.5, 0.0)]
    for number in range(count):
        parts += [(seconds, 0.1 + 0.8 * (number * 7 % 31) / 31), PAUSE]
    return tones(*parts)


@dataclass
class SlowEngine(FakeEngine):
    """Takes its time; the earlier of two pieces may take longer."""

    step_s: float = 1.0
    uneven: bool = False
    languages: deque[str] = field(default_factory=deque)
    """Of the next answers."""
    running: bool = False
    now_running: int = 0
    most: int = 0

    def open_stream(self, options):
        super().open_stream(options)
        return SlowStream(self, options)


@dataclass
class SlowStream(FakeStream):
    async def step(self, audio, kind):
        engine = self.engine
        number = len(engine.steps)
        engine.now_running += 1
        engine.most = max(engine.most, engine.now_running)
        try:
            await asyncio.sleep(engine.step_s / (1 + number % 4) if engine.uneven else engine.step_s)
            heard = await super().step(audio, kind)
        finally:
            engine.now_running -= 1
        if engine.languages:
            return Hypothesis(heard.text, engine.languages.popleft(), heard.words, final=True)
        return heard


@dataclass
class DeafEngine(FakeEngine):
    """Hears nothing in anything, or in some pieces."""

    deaf_to: Collection[int] | None = None
    """Numbers of pieces, from 1; None for all."""

    def open_stream(self, options):
        super().open_stream(options)
        return DeafStream(self, options)


class DeafStream(FakeStream):
    async def step(self, audio, kind):
        heard = await super().step(audio, kind)
        engine = self.engine
        return Hypothesis("") if engine.deaf_to is None or len(engine.steps) in engine.deaf_to else heard


def assert_in_order(transcript):
    """Check what holds for every transcript."""
    last_segment, last_word = {}, {}
    for segment in transcript.segments:
        assert segment.text == segment.text.strip() != ""
        assert last_segment.get(segment.channel, 0) <= segment.start < segment.end
        last_segment[segment.channel] = segment.end
        for word in segment.words:
            assert segment.start <= word.start <= word.end <= segment.end
            assert word.start >= last_word.get(segment.channel, 0)
            last_word[segment.channel] = word.end
    starts = [segment.start for segment in transcript.segments]
    assert starts == sorted(starts)


# What comes out


@virtual_time
async def test_segments_come_in_order_whatever_the_order_of_answers():
    audio = utterances(12)
    async with studio(SlowEngine(uneven=True)) as slow:
        uneven = await slow.transcribe(audio, words=True)
    async with studio(FakeEngine()) as quick:
        even = await quick.transcribe(audio, words=True)
    assert uneven == even
    assert len(even.segments) == 12
    assert even.duration == len(audio)
    assert even.language == "en"
    assert_in_order(even)


@virtual_time
async def test_each_segment_is_told_as_soon_as_it_is_there():
    async with studio(SlowEngine(step_s=10.0), scheduling=SchedulerOptions(max_recorded=2)) as place:
        began = clock()
        segments = Recording(place.workers, MemoryMedia(utterances(5)), TranscribeOptions()).segments()
        async with aclosing(segments):
            times = [clock() - began async for _ in segments]
    assert times == pytest.approx([10, 10, 20, 20, 30], abs=0.1)


@virtual_time
async def test_nothing_that_was_not_asked_for():
    async with studio(FakeEngine()) as place:
        transcript = await place.transcribe(utterances(2))
        assert all(segment.words == () for segment in transcript.segments)
        assert (await place.transcribe(np.zeros(80_000, np.float32))).segments == ()
        empty = await place.transcribe(np.zeros(0, np.float32))
        assert (empty.text, empty.language, empty.duration) == ("", None, 0)
        assert place.progress[-1] == (0.0, 0.0)


@virtual_time
async def test_channels_are_kept_apart_and_merged_by_time():
    left = tones((0.5, 0.0), (2.0, 0.3), (6.0, 0.0), (2.0, 0.5), (1.5, 0.0))
    right = tones((4.0, 0.0), (20.0, 0.8))[: len(left)]
    async with studio(SlowEngine(uneven=True)) as place:
        together = await place.transcribe(np.stack([left, right]), words=True)
        alone = await place.transcribe(left, words=True)
    assert [segment.channel for segment in together.segments] == [0, 1, 0]
    assert_in_order(together)
    assert together.of_channel(0) == alone
    assert (together.channels, alone.channels) == ((0, 1), (0,))


@virtual_time
async def test_channels_are_known_though_nobody_speaks_in_them():
    silence = np.zeros(80_000, np.float32)
    async with studio(FakeEngine()) as place:
        transcript = await place.transcribe(np.stack([silence, utterances(2)[:80_000], silence]))
        assert transcript.channels == (0, 1, 2)
        assert [bool(transcript.of_channel(channel).text) for channel in transcript.channels] == [False, True, False]
        assert (await place.transcribe(np.stack([silence, silence]))).channels == (0, 1)


@virtual_time
async def test_many_short_pieces_beside_an_endless_one():
    chatter = utterances(60, 0.5)
    drone = np.full(len(chatter), 0.4, np.float32)
    async with studio(SlowEngine()) as place:
        transcript = await place.transcribe(np.stack([chatter, drone]), words=True)
    assert len(transcript.of_channel(0).segments) == 60
    assert_in_order(transcript)


SCRIPT = st.lists(
    st.one_of(
        st.tuples(st.floats(0.1, 40), st.sampled_from([0.1, 0.33, 0.8])), st.tuples(st.floats(0.05, 3), st.just(0.0))
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=40)
@given(st.lists(SCRIPT, min_size=1, max_size=2), st.floats(0.3, 5), st.booleans(), st.booleans())
def test_times_are_monotone_and_results_repeatable(scripts, block_s, previous, uneven):
    @virtual_time
    async def run():
        tracks = [tones(*script) for script in scripts]
        audio = np.stack([np.pad(track, (0, max(map(len, tracks)) - len(track))) for track in tracks])
        options = {"words": True, "use_previous_context": previous}
        async with studio(SlowEngine(uneven=uneven)) as place:
            transcript = await place.transcribe(MemoryMedia(audio, block_s), **options)
        assert_in_order(transcript)
        assert_progress(place.progress, audio.shape[1] / SAMPLE_RATE)
        async with studio(FakeEngine()) as place:
            assert transcript == await place.transcribe(audio, **options)

    run()


# Progress


def assert_progress(told, total_s):
    done = [at for at, _ in told]
    assert done == sorted(done)
    assert done[-1] == told[-1][1] == pytest.approx(total_s)
    assert all(total is None or at <= total for at, total in told)


@virtual_time
@pytest.mark.parametrize("known", [True, False])
async def test_progress_is_known_at_any_time(known):
    audio = utterances(10)
    async with studio(SlowEngine(), scheduling=SchedulerOptions(max_recorded=1)) as place:
        await place.transcribe(MemoryMedia(audio, known=known))
        assert_progress(place.progress, len(audio) / SAMPLE_RATE)
        assert len({done for done, _ in place.progress}) > 8
        assert {total for _, total in place.progress[:-1]} >= ({len(audio) / SAMPLE_RATE} if known else {None})


@virtual_time
async def test_a_recording_that_is_longer_than_it_says():
    class Understated(MemoryMedia):
        duration_s = 4.0

    audio = utterances(5)
    async with studio(SlowEngine()) as place:
        await place.transcribe(Understated(audio))
        assert_progress(place.progress, len(audio) / SAMPLE_RATE)
        assert place.progress[0][1] == 4.0


# Memory


@virtual_time
async def test_a_recording_is_read_no_further_than_it_is_decoded():
    engine = FakeEngine(gate=asyncio.Event())
    media = MemoryMedia(utterances(100))
    async with studio(engine) as place:
        running = asyncio.create_task(place.transcribe(media))
        await asyncio.sleep(60)
        assert len(engine.steps) == MAX_PIECES
        assert media.read < (MAX_PIECES + 2) * 3.0 * SAMPLE_RATE
        engine.gate.set()
        assert len((await running).segments) == 100


# Contexts and languages


@virtual_time
async def test_initial_context_is_for_the_first_piece():
    engine = FakeEngine()
    async with studio(engine) as place:
        await place.transcribe(utterances(3), context="Qwen", initial_context="Good morning.")
        assert [options.context for options in engine.opened] == ["Qwen\nGood morning.", "Qwen", "Qwen"]
        assert all(options.recorded for options in engine.opened)


@virtual_time
@pytest.mark.parametrize("previous", [True, False])
async def test_initial_context_is_whole_and_for_no_other_piece_though_nothing_was_heard(previous):
    engine = DeafEngine()
    async with studio(engine) as place:
        initial = "word " * 100
        await place.transcribe(utterances(3), initial_context=initial, use_previous_context=previous)
        assert [options.context for options in engine.opened] == [initial.strip(), "", ""]


@virtual_time
async def test_the_end_of_each_text_is_carried_on_and_pieces_run_in_order():
    engine = SlowEngine()
    async with studio(engine) as place:
        transcript = await place.transcribe(
            utterances(4, 20.0), initial_context="before", use_previous_context=True, context="Qwen"
        )
        contexts = [options.context.removeprefix("Qwen\n") for options in engine.opened]
        assert contexts[0] == "before"
        for segment, context in zip(transcript.segments, contexts[1:], strict=False):
            assert segment.text.endswith(context)
            assert 190 < len(context) <= 200
        assert engine.most == 1


@virtual_time
@pytest.mark.parametrize("block_s", [1.0, 60.0], ids=["one after the other", "all at once"])
async def test_of_short_texts_only_the_last_is_carried_on(block_s):
    engine = DeafEngine(deaf_to={3})
    async with studio(engine) as place:
        transcript = await place.transcribe(MemoryMedia(utterances(5), block_s), use_previous_context=True)
        first, second, fourth, _ = (segment.text for segment in transcript.segments)
        assert [options.context for options in engine.opened] == ["", first, second, second, fourth]
        assert len(" ".join([first, second, fourth])) <= PREVIOUS_CHARS


@virtual_time
async def test_pieces_are_decoded_side_by_side_otherwise():
    engine = SlowEngine()
    async with studio(engine, scheduling=SchedulerOptions(max_recorded=4)) as place:
        await place.transcribe(utterances(12, 3.0))
        assert engine.most == 4


@virtual_time
async def test_a_short_piece_is_held_against_the_language_before_it():
    engine = SlowEngine(languages=deque(["zh", "zh", "en", "en", "en"]))  # the long ones answer first
    audio = tones((0.5, 0.0), (3, 0.3), PAUSE, (3, 0.4), PAUSE, (0.5, 0.5), PAUSE, (3, 0.3), PAUSE, (0.5, 0.3), PAUSE)
    async with studio(engine) as place:
        await place.transcribe(audio)
    assert [options.expected_language for options in engine.opened] == [None, None, None, "zh", None]


@virtual_time
async def test_a_forced_language_is_taken_as_it_is():
    engine = FakeEngine()
    async with studio(engine) as place:
        transcript = await place.transcribe(utterances(3, 0.5), language="zh")
        assert transcript.language == "zh"
        assert {(o.language, o.expected_language) for o in engine.opened} == {("zh", None)}
        with pytest.raises(InvalidValue):
            await place.transcribe(utterances(3), language="tlh")


@virtual_time
async def test_manual_pieces_bridge_what_would_end_an_utterance():
    async with studio(FakeEngine()) as place:
        audio = utterances(3)
        assert len((await place.transcribe(audio)).segments) == 3
        assert len((await place.transcribe(audio, turn_detection=None)).segments) == 1
        assert len((await place.transcribe(audio, turn_detection=TurnDetection(silence_ms=2000))).segments) == 1


# Words


@dataclass
class FakeAligner:
    """Places a word each tenth of a second."""

    takes_s: float = 0.1
    failures: deque[Exception] = field(default_factory=deque)
    dead: bool = False
    model: str = "fake"
    running: int = 0
    most: int = 0
    starts: int = 0
    languages: list[str | None] = field(default_factory=list)
    """Of what was to be placed."""

    async def start(self):
        self.starts += 1
        self.dead = False

    async def stop(self): ...

    async def align(self, audio, text, language):
        self.languages.append(language)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.running -= 1
        if self.failures:
            error = self.failures.popleft()
            self.dead = isinstance(error, EngineCrashed)
            raise error
        return [Word(word, n * 1600, (n + 1) * 1600) for n, word in enumerate(text.split())]


@virtual_time
async def test_words_are_placed_piece_by_piece():
    aligner = FakeAligner(takes_s=20.0)  # far more than a live session would wait
    async with studio(FakeEngine(word_times=False), aligner=aligner) as place:
        transcript = await place.transcribe(utterances(20), words=True)
        assert all([word.text for word in segment.words] == segment.text.split() for segment in transcript.segments)
        assert_in_order(transcript)
        assert 1 < aligner.most <= 4
        assert not (await place.transcribe(utterances(2))).words


@virtual_time
@pytest.mark.parametrize(("heard", "asked"), [("zh", "zh"), (None, "en")])
async def test_words_are_placed_in_the_language_that_was_heard_or_else_asked_for(heard, asked):
    aligner = FakeAligner()
    engine = SlowEngine(word_times=False, languages=deque([heard]))
    async with studio(engine, aligner=aligner) as place:
        await place.transcribe(utterances(1), words=True, language="en")
    assert aligner.languages == [asked]


@virtual_time
async def test_words_of_a_recording_that_was_ended_are_not_placed():
    aligner = FakeAligner(takes_s=20.0)
    async with studio(FakeEngine(word_times=False), aligner=aligner) as place:
        running = asyncio.create_task(place.transcribe(utterances(12), words=True))
        await asyncio.sleep(5)
        begun = len(aligner.languages)
        assert aligner.running == begun < 12
        running.cancel()
        await asyncio.sleep(100)
        assert (aligner.running, len(aligner.languages)) == (0, begun)


@virtual_time
@pytest.mark.parametrize(("error", "starts", "placed"), [(EngineError("no"), 1, 2), (EngineCrashed("dead"), 2, 3)])
async def test_an_aligner_that_fails_costs_a_segment_its_words_and_one_that_dies_nothing(error, starts, placed):
    aligner = FakeAligner(failures=deque([error]))
    async with studio(FakeEngine(word_times=False), aligner=aligner) as place:
        transcript = await place.transcribe(utterances(3), words=True)
        assert len(transcript.segments) == 3
        assert sum(bool(segment.words) for segment in transcript.segments) == placed
        assert aligner.starts == starts


# Failures


@virtual_time
async def test_a_piece_that_fails_is_tried_again():
    engine = FakeEngine(failures=deque([EngineTimeout("slow")] * (ATTEMPTS - 1)))
    async with studio(engine) as place:
        began = clock()
        assert len((await place.transcribe(utterances(1))).segments) == 1
        assert len(engine.steps) == ATTEMPTS
        assert clock() - began == pytest.approx(sum(RETRY_AFTER_S))


@virtual_time
async def test_but_not_for_ever():
    engine = FakeEngine(failures=deque([EngineTimeout("slow")] * ATTEMPTS))
    async with studio(engine) as place:
        with pytest.raises(EngineTimeout):
            await place.transcribe(utterances(1))
        assert len(engine.steps) == ATTEMPTS


@virtual_time
async def test_what_trying_again_does_not_mend_fails_at_once():
    engine = FakeEngine(failures=deque([Fatal("never")]))
    async with studio(engine) as place:
        with pytest.raises(Fatal):
            await place.transcribe(utterances(1))
        assert len(engine.steps) == 1


@virtual_time
async def test_what_is_ended_is_not_tried_again():
    engine = FakeEngine(failures=deque([EngineTimeout("slow")]))
    async with studio(engine) as place:
        running = asyncio.create_task(place.transcribe(utterances(1)))
        await asyncio.sleep(1)
        running.cancel()
        await asyncio.sleep(60)
        assert len(engine.steps) == 1


@virtual_time
async def test_what_died_with_the_engine_is_tried_again_when_it_is_back():
    engine = SlowEngine()
    async with studio(engine) as place:
        running = asyncio.create_task(place.transcribe(utterances(8)))
        await asyncio.sleep(0.5)
        assert place.scheduler.stats()["open_streams"] == 8
        place.scheduler.engine_gone(EngineCrashed("dead"))
        await asyncio.sleep(120)
        assert not running.done()
        place.scheduler.engine_ready(engine)
        assert len((await running).segments) == 8
        assert len(engine.opened) == 16


@virtual_time
async def test_an_engine_that_dies_of_a_piece_fails_the_recording():
    engine = SlowEngine()
    async with studio(engine) as place:
        running = asyncio.create_task(place.transcribe(utterances(1)))
        for _ in range(ATTEMPTS):
            await asyncio.sleep(0.5)
            place.scheduler.engine_gone(EngineCrashed("dead"))
            await settle()
            place.scheduler.engine_ready(engine)
        with pytest.raises(EngineCrashed):
            await running


@virtual_time
async def test_an_engine_that_cannot_start_fails_it_too():
    async with studio(FakeEngine()) as place:
        place.scheduler.engine_failed(EngineNotReady("no weights"))
        with pytest.raises(EngineNotReady):
            await place.transcribe(utterances(2))


@dataclass
class WrongEngine(FakeEngine):
    """Breaks the contract of engines."""

    answer: object = None

    def open_stream(self, options):
        super().open_stream(options)
        return WrongStream(self, options)


class WrongStream(FakeStream):
    async def step(self, audio, kind):
        return self.engine.answer


@virtual_time
@pytest.mark.parametrize(("answer", "noticed_at"), [("no hypothesis", "its text"), (Hypothesis(5), "its words")])
async def test_a_fault_of_ours_ends_the_recording_and_nothing_else(answer, noticed_at, caplog):
    """It comes up in the scheduler or at the aligner's desk, where nobody waits for it."""
    engine = WrongEngine(word_times=False, answer=answer)
    async with studio(engine, aligner=FakeAligner()) as place:
        with pytest.raises(InternalError, match="Internal error") as told:
            await place.transcribe(utterances(3), words=True, use_previous_context=True)
        engine.answer = Hypothesis("words")
        assert len((await place.transcribe(utterances(3))).segments) == 3
    (record,) = [record for record in caplog.records if record.message == "recording failed"]
    assert record.error_id in told.value.message
    calls = {frame.name for frame in traceback.extract_tb(record.exc_info[2])}
    assert ("_placed" in calls) == (noticed_at == "its words")


@virtual_time
async def test_a_detector_that_fails_or_does_not_answer():
    async with studio(FakeEngine()) as place:
        place.vad.failure = InternalError("id")
        with pytest.raises(InternalError, match="id"):
            await place.transcribe(utterances(1))
        place.vad.failure, place.vad.score_s = None, 1e4
        with pytest.raises(InternalError, match="in time"):
            await place.transcribe(utterances(1))


@virtual_time
async def test_what_cannot_be_read_is_an_error_of_the_reader():
    class Torn(MemoryMedia):
        async def blocks(self):
            async for block in super().blocks():
                if self.read > 100_000:
                    raise InvalidValue("torn")
                yield block

    engine = SlowEngine()
    async with studio(engine) as place:
        with pytest.raises(InvalidValue, match="torn"):
            await place.transcribe(Torn(utterances(5)))
        await asyncio.sleep(0)
        assert engine.now_running == 0


# The end before the end


@virtual_time
async def test_cancellation_gives_everything_back():
    engine = SlowEngine(step_s=100)
    async with studio(engine) as place:
        running = asyncio.create_task(place.transcribe(utterances(30)))
        await asyncio.sleep(5)
        assert engine.now_running
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await settle()
        assert engine.now_running == engine.open_streams == 0


@virtual_time
async def test_so_does_whoever_reads_no_further():
    engine = SlowEngine(uneven=True)
    async with studio(engine) as place:
        recording = Recording(place.workers, MemoryMedia(utterances(30)), TranscribeOptions())
        async with aclosing(recording.segments()) as segments:
            async for _ in segments:
                break
        await settle()
        assert engine.now_running == engine.open_streams == 0


@virtual_time
@pytest.mark.parametrize(
    ("count", "after_s"), [(30, 0.0), (30, 0.05), (30, 5.0), (2, 50.0)], ids=["0", "0.05", "5", "all is read"]
)
async def test_it_can_be_ended_at_any_time(count, after_s):
    engine = SlowEngine(step_s=100)
    async with studio(engine) as place:
        place.vad.score_s = 0.1
        recording = Recording(place.workers, MemoryMedia(utterances(count)), TranscribeOptions(), SessionOptions())

        async def run():
            return [segment async for segment in recording.segments()]

        running = asyncio.create_task(run())
        await asyncio.sleep(after_s)
        recording.end(ShuttingDown("The server is shutting down."))
        with pytest.raises(ShuttingDown):
            await running
        await settle()
        assert engine.now_running == engine.open_streams == 0
        assert not recording.finished


@virtual_time
async def test_live_finals_overtake_a_recording():
    from qwen3_asr_server.messages import Heard
    from support.steps import Speaker, decode

    engine = SlowEngine(step_s=2.0)
    async with studio(engine, scheduling=SchedulerOptions(max_recorded=2, max_urgent=2)) as place:
        running = asyncio.create_task(place.transcribe(utterances(16)))
        await asyncio.sleep(1)
        speaker = Speaker(0, clock, speaking=False)
        speaker.lane = place.scheduler.attach(speaker)
        speaker.lane.submit(decode(StepKind.FINAL, 0))
        await asyncio.sleep(2.01)
        assert [type(outcome) for outcome in speaker.outcomes] == [Heard]
        speaker.lane.detach()
        await running
