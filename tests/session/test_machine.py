"""The session machine step by step: what goes in, what comes out, in virtual time."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from qwen3_asr_server.domain import Hypothesis, SessionConfig, StepKind, TurnDetection, Word
from qwen3_asr_server.errors import (
    EmptyCommit,
    EngineCrashed,
    EngineTimeout,
    IdleTimeout,
    InvalidAudio,
    InvalidValue,
)
from qwen3_asr_server.messages import (
    AppendAudio,
    Clear,
    Cleared,
    Closing,
    Command,
    Commit,
    Committed,
    Configure,
    Decode,
    DecodeFailed,
    Disconnect,
    Event,
    Final,
    Finish,
    Finished,
    Heard,
    Partial,
    Rejected,
    Release,
    Scored,
    ScoreFrames,
    Skipped,
    SpeechStarted,
    SpeechStopped,
    UtteranceFailed,
)
from qwen3_asr_server.session.machine import SessionMachine
from qwen3_asr_server.session.options import SessionOptions
from support.session_sim import Script, audio, spell

VAD = SessionConfig(turn_detection=TurnDetection(silence_ms=800))
MANUAL = SessionConfig(turn_detection=None)
PHRASE: Script = [(0.0, 20), (0.8, 40), (0.0, 30)]
OPTIONS = SessionOptions()


class Session:
    """A machine whose VAD answers at once; decodes wait in `decodes` until the test answers them."""

    def __init__(self, config: SessionConfig = VAD, options: SessionOptions = OPTIONS) -> None:
        self.machine = SessionMachine(config, options, 0.0)
        self.now = 0.0
        self.decodes: list[Decode] = []
        self.released: list[int] = []

    def do(self, *commands: Command) -> list[Event]:
        for command in commands:
            self.machine.handle(command, self.now)
            self._work()
        return self.machine.events_to_send()

    def say(self, script: Script) -> list[Event]:
        samples = audio(script)
        return self.do(*(AppendAudio(samples[at : at + 1600]) for at in range(0, len(samples), 1600)))

    def pull(self) -> Decode | None:
        job = self.machine.pull(self.now)
        if job is not None:
            self.decodes.append(job)
        return job

    def hear(self, text: str | None = None, *, final: bool = True, words: Sequence[Word] = ()) -> list[Event]:
        """Answer the oldest decode."""
        job = self.decodes.pop(0)
        final = final and job.kind is not StepKind.PARTIAL
        known = Hypothesis(spell(job.audio) if text is None else text, "en", words, 0.5, final)
        self.machine.outcome(Heard(job.piece, job.kind, job.upto, known), self.now)
        self._work()
        return self.machine.events_to_send()

    def fail(self, error: EngineTimeout | EngineCrashed | InvalidValue) -> list[Event]:
        job = self.decodes.pop(0)
        self.machine.outcome(DecodeFailed(job.piece, job.kind, error), self.now)
        self._work()
        return self.machine.events_to_send()

    def tick(self, now: float) -> list[Event]:
        self.now = now
        self.machine.tick(now)
        self._work()
        return self.machine.events_to_send()

    def _work(self) -> None:
        while jobs := self.machine.jobs_to_run():
            for job in jobs:
                match job:
                    case ScoreFrames():
                        scores = np.abs(job.frames).mean(axis=1).astype(np.float32)
                        self.machine.outcome(Scored(job.epoch, scores), self.now)
                    case Decode():
                        self.decodes.append(job)
                    case Release(piece=piece):
                        self.released.append(piece)
                        self.decodes = [d for d in self.decodes if d.piece != piece]


class TestVad:
    def test_an_utterance(self) -> None:
        session = Session()
        events = session.say(PHRASE)
        assert events == [SpeechStarted(0, 20 * 512), SpeechStopped(0, 60 * 512), Committed(0, None)]
        assert [job.kind for job in session.decodes] == [StepKind.CANDIDATE]
        events = session.hear("hello there")
        assert events == [Final(0, "hello there", "en")]
        assert session.released == [0]
        assert session.do(Finish()) == [Finished("hello there")]
        assert session.machine.done

    def test_a_candidate_is_shown_and_then_comes_true(self) -> None:
        session = Session()
        session.say([(0.8, 40), (0.0, 8)])
        assert session.hear("hello") == [Partial(0, "", "hello", "en")]
        events = session.say([(0.0, 30)])
        assert events == [SpeechStopped(0, 40 * 512), Committed(0, None), Final(0, "hello", "en")]
        assert session.decodes == []

    def test_a_candidate_that_is_not_final_is_followed_by_one(self) -> None:
        session = Session()
        session.say([(0.8, 40), (0.0, 8)])
        session.hear("hello", final=False)
        session.say([(0.0, 30)])
        assert [job.kind for job in session.decodes] == [StepKind.FINAL]
        assert session.hear("hello!") == [Final(0, "hello!", "en")]

    def test_a_candidate_was_a_partial_when_speech_resumes(self) -> None:
        session = Session()
        session.say([(0.8, 40), (0.0, 8)])
        session.hear("hello")
        session.say([(0.8, 40), (0.0, 30)])
        assert [job.kind for job in session.decodes] == [StepKind.CANDIDATE]
        assert session.hear("hello again") == [Final(0, "hello again", "en")]

    def test_finals_come_in_order(self) -> None:
        session = Session()
        session.say([*PHRASE, *PHRASE])
        first, second = session.decodes
        session.decodes = [second, first]
        assert session.hear("two") == []
        assert session.hear("one") == [Final(0, "one", "en"), Final(1, "two", "en")]

    def test_committed_names_the_item_before(self) -> None:
        events = Session().say([*PHRASE, *PHRASE])
        assert [e for e in events if isinstance(e, Committed)] == [Committed(0, None), Committed(1, 0)]

    def test_finish_flushes_the_open_utterance(self) -> None:
        session = Session()
        session.say([(0.8, 40)])
        events = session.do(Finish())
        assert events == [SpeechStopped(0, 40 * 512), Committed(0, None)]
        assert session.decodes[0].kind is StepKind.FINAL
        assert not session.decodes[0].audio[40 * 512 :].any()
        assert session.hear("bye") == [Final(0, "bye", "en"), Finished("bye")]

    def test_finish_after_silence_ends_at_once(self) -> None:
        session = Session()
        session.say([(0.0, 40)])
        assert session.do(Finish()) == [Finished("")]

    def test_a_commit_is_refused(self) -> None:
        session = Session()
        session.say([(0.8, 40)])
        (event,) = session.do(Commit("e1"))
        assert isinstance(event, Rejected)
        assert isinstance(event.error, EmptyCommit)
        assert event.event_id == "e1"

    def test_clear_forgets_the_open_utterance(self) -> None:
        session = Session()
        session.say([(0.8, 40), (0.0, 8)])
        assert session.do(Clear()) == [SpeechStopped(0, 48 * 512), Cleared()]
        assert session.released == [0]
        assert session.decodes == []
        assert session.do(Finish()) == [Finished("")]


class TestManual:
    def test_an_item(self) -> None:
        session = Session(MANUAL)
        assert session.say(PHRASE) == []
        assert session.hear("hello") == []
        events = session.do(Commit(), Finish())
        assert events == [Committed(0, None), Final(0, "hello", "en"), Finished("hello")]

    def test_what_is_known_at_the_commit_is_shown(self) -> None:
        session = Session(MANUAL)
        session.say([(0.8, 40)])
        session.pull()
        session.hear("hel")
        assert session.do(Commit()) == [Committed(0, None), Partial(0, "", "hel", "en")]
        assert session.hear("hello") == [Final(0, "hello", "en")]

    def test_a_silent_item_has_an_empty_transcript(self) -> None:
        session = Session(MANUAL)
        session.say([(0.0, 40)])
        assert session.do(Commit()) == [Committed(0, None), Final(0, "", "en")]
        assert session.decodes == []

    @pytest.mark.parametrize("before", [[], [Commit()], [Clear()]])
    def test_there_must_be_something_to_commit(self, before: list[Command]) -> None:
        session = Session(MANUAL)
        if before:
            session.say(PHRASE)
            session.do(*before)
        (event,) = session.do(Commit("e1"))
        assert isinstance(event, Rejected)
        assert isinstance(event.error, EmptyCommit)

    def test_uncommitted_speech_is_recognised_at_finish(self) -> None:
        session = Session(MANUAL)
        session.say([(0.8, 40)])
        assert session.do(Finish()) == [Committed(0, None)]
        assert session.hear("bye") == [Final(0, "bye", "en"), Finished("bye")]

    def test_uncommitted_silence_is_nothing(self) -> None:
        session = Session(MANUAL)
        session.say([(0.0, 40)])
        assert session.do(Finish()) == [Finished("")]

    def test_an_item_has_a_longest_length(self) -> None:
        session = Session(MANUAL, replace(OPTIONS, manual_max_s=1.0))
        assert session.say([(0.0, 31)]) == []
        (event,) = session.do(AppendAudio(audio([(0.0, 1)]), "e7"))
        assert isinstance(event, Rejected)
        assert isinstance(event.error, InvalidAudio)
        assert event.event_id == "e7"
        assert session.say([(0.0, 50)]) == [], "it is told once, however long the client goes on"
        assert session.do(Commit()) == [Committed(0, None), Final(0, "", "en")]
        assert session.say([(0.0, 1)]) == []

    def test_clear_forgets_what_was_not_committed(self) -> None:
        session = Session(MANUAL)
        session.say(PHRASE)
        assert session.do(Clear(), Finish()) == [Cleared(), Finished("")]


class TestConfigure:
    def test_a_new_language_counts_from_the_next_item(self) -> None:
        session = Session()
        session.say([(0.8, 40)])
        session.do(Configure(replace(VAD, language="fr", context="names")))
        session.say([(0.0, 30), *PHRASE])
        options = {job.item: job.options for job in session.decodes}
        assert (options[0].language, options[1].language) == (None, "fr")
        assert options[1].context == "names"

    def test_a_new_silence_counts_from_the_next_item(self) -> None:
        session = Session()
        session.say([(0.8, 40)])
        session.do(Configure(SessionConfig(turn_detection=TurnDetection(silence_ms=200))))
        assert session.say([(0.0, 20)]) == []
        session.say([(0.0, 10), (0.8, 20)])
        assert SpeechStopped in [type(e) for e in session.say([(0.0, 7)])]

    def test_to_manual_ends_the_utterance(self) -> None:
        session = Session()
        session.say([(0.8, 40)])
        assert session.do(Configure(MANUAL)) == [SpeechStopped(0, 40 * 512), Committed(0, None)]
        session.hear("one")
        assert session.say(PHRASE) == []
        session.hear("two")
        assert session.do(Commit()) == [Committed(1, 0), Final(1, "two", "en")]

    def test_to_vad_commits_what_was_said(self) -> None:
        session = Session(MANUAL)
        session.say(PHRASE)
        assert session.do(Configure(VAD)) == [Committed(0, None)]
        assert SpeechStarted in [type(e) for e in session.say(PHRASE)]

    def test_to_vad_forgets_silence(self) -> None:
        session = Session(MANUAL)
        session.say([(0.0, 40)])
        assert session.do(Configure(VAD), Finish()) == [Finished("")]


class TestPartials:
    def test_they_are_pulled_when_worth_it(self) -> None:
        session = Session()
        session.say([(0.0, 20)])
        assert session.machine.offer() is None
        session.say([(0.8, 5)])
        offer = session.machine.offer()
        assert offer is not None
        assert offer.unheard_s == pytest.approx(0.4)
        assert offer.due == pytest.approx(0.4)
        session.pull()
        assert session.machine.offer() is None
        session.hear("a")
        assert session.machine.offer() is None
        session.say([(0.8, 10)])
        assert session.machine.offer() is not None

    def test_a_skipped_one_is_offered_again(self) -> None:
        session = Session()
        session.say([(0.8, 20)])
        job = session.pull()
        assert job is not None
        session.machine.outcome(Skipped(job.piece, job.kind), 1.0)
        assert session.machine.offer() is not None

    def test_the_same_text_is_not_told_twice(self) -> None:
        session = Session()
        session.say([(0.8, 20)])
        session.pull()
        assert session.hear("a") == [Partial(0, "", "a", "en")]
        session.say([(0.8, 20)])
        session.pull()
        assert session.hear("a") == []

    def test_agreed_old_text_becomes_stable(self) -> None:
        session = Session()
        session.say([(0.8, 20)])
        session.pull()
        session.hear("one")
        session.say([(0.8, 60)])
        session.pull()
        session.hear("one two")
        session.say([(0.8, 60)])
        session.pull()
        assert session.hear("one two three") == [Partial(0, "one two", " three", "en")]

    def test_a_final_may_contradict_the_stable_prefix(self) -> None:
        session = Session()
        for text in ("one", "one two", "one two three"):
            session.say([(0.8, 60)])
            session.pull()
            (partial,) = session.hear(text)
        assert partial == Partial(0, "one two", " three", "en")
        session.do(Finish())
        assert session.hear("none") == [Final(0, "none", "en"), Finished("none")]


class TestFailures:
    def test_a_final_is_tried_twice(self) -> None:
        session = Session()
        session.say(PHRASE)
        session.hear("x", final=False)
        assert session.fail(EngineCrashed("gone")) == []
        assert session.hear("hello") == [Final(0, "hello", "en")]

    def test_then_the_item_fails_and_the_session_lives(self) -> None:
        session = Session()
        session.say(PHRASE)
        session.hear("x", final=False)
        session.fail(EngineCrashed("gone"))
        (event,) = session.fail(EngineCrashed("gone"))
        assert isinstance(event, UtteranceFailed)
        session.say(PHRASE)
        assert session.hear("next") == [Final(1, "next", "en")]

    def test_what_cannot_be_mended_is_not_tried_again(self) -> None:
        session = Session()
        session.say(PHRASE)
        session.hear("x", final=False)
        (event,) = session.fail(InvalidValue("no"))
        assert isinstance(event, UtteranceFailed)

    def test_answers_for_what_is_gone_are_counted(self) -> None:
        session = Session()
        session.say([(0.8, 40), (0.0, 8)])
        job = session.decodes[0]
        session.do(Clear())
        session.machine.outcome(Heard(job.piece, job.kind, job.upto, Hypothesis("late")), 0.0)
        session.machine.outcome(Scored(7, np.ones(1, np.float32)), 0.0)
        assert session.machine.events_to_send() == []
        assert session.machine.stale_outcomes == 2


class TestTime:
    def test_an_idle_session_is_closed(self) -> None:
        session = Session()
        session.now = 5.0
        session.say(PHRASE)
        assert session.machine.next_timeout() == 605.0
        assert session.tick(604.9) == []
        (event,) = session.tick(605.0)
        assert isinstance(event, Closing)
        assert isinstance(event.error, IdleTimeout)
        assert session.machine.done
        assert session.machine.next_timeout() is None

    def test_touch_keeps_it_open(self) -> None:
        session = Session()
        session.machine.touch(300.0)
        assert session.tick(600.0) == []

    def test_the_finish_deadline_counts_from_the_last_progress(self) -> None:
        session = Session()
        session.say([*PHRASE, *PHRASE])
        session.do(Finish())
        session.now = 20.0
        session.hear("one")
        assert session.tick(49.9) == []
        failed, finished = session.tick(50.0)
        assert isinstance(failed, UtteranceFailed)
        assert isinstance(failed.error, EngineTimeout)
        assert finished == Finished("one")

    def test_at_the_deadline_an_utterance_the_detector_never_ended_is_committed_and_failed(self) -> None:
        session = Session()
        session.say([(0.8, 40)])
        session.machine.handle(AppendAudio(audio([(0.8, 20)])), 0.0)
        session.machine.handle(Finish(), 0.0)
        session.machine.jobs_to_run()  # the detector never answers
        assert [type(e) for e in session.tick(30.0)] == [SpeechStopped, Committed, UtteranceFailed, Finished]

    def test_at_the_deadline_commits_that_wait_are_told_too(self) -> None:
        session = Session(MANUAL)
        session.machine.handle(AppendAudio(audio(PHRASE)), 0.0)
        session.machine.handle(Commit(), 0.0)
        session.machine.handle(AppendAudio(audio(PHRASE)), 0.0)
        session.machine.handle(Commit(), 0.0)
        session.machine.handle(Finish(), 0.0)
        assert session.machine.waiting_commands == 3
        session.machine.jobs_to_run()  # the detector never answers
        told = [type(e) for e in session.tick(30.0)]
        assert told == [Committed, UtteranceFailed, Committed, UtteranceFailed, Finished]

    def test_disconnect_releases_everything(self) -> None:
        session = Session()
        session.say([(0.8, 40), (0.0, 8)])
        assert session.do(Disconnect()) == []
        assert session.machine.done
        assert session.released == [0]
        assert session.do(AppendAudio(audio(PHRASE))) == []


class TestDetails:
    def test_words_come_when_asked_for_on_the_session_clock(self) -> None:
        word = Word("hello", 1600, 8000, 0.5)
        session = Session(replace(VAD, words=True))
        session.say(PHRASE)
        start = session.decodes[0].start
        (event,) = session.hear("hello", words=[word])
        assert event == Final(0, "hello", "en", (word.shifted(start),), 0.5)

    def test_the_asked_language_is_reported_until_one_is_heard(self) -> None:
        session = Session(replace(MANUAL, language="fr"))
        session.say([(0.0, 40)])
        assert session.do(Commit())[-1] == Final(0, "", "fr")

    def test_what_follows_an_unsettled_piece_is_not_stable(self) -> None:
        session = Session(SessionConfig(turn_detection=TurnDetection(silence_ms=6000)))
        session.say([(0.8, 100), (0.0, 65)])  # two seconds of silence end the piece, not the item
        first = session.decodes.pop()
        for text in ("second", "second piece", "second piece goes", "second piece goes on"):
            session.say([(0.8, 60)])
            session.pull()
            (partial,) = session.hear(text)
            assert partial == Partial(0, "", text, "en")
        session.decodes.append(first)
        partial = session.hear("first")[-1]
        assert partial == Partial(0, "first second piece goes", " on", "en")

    def test_a_very_long_session_keeps_its_last_finals_only(self) -> None:
        session = Session(VAD, replace(OPTIONS, transcript_chars=12))
        for number in range(10):
            session.say(PHRASE)
            session.hear(f"word{number}")
        assert session.do(Finish()) == [Finished("word8 word9")]

    def test_buffered_counts_what_was_not_heard(self) -> None:
        session = Session()
        session.say([(0.8, 40), (0.0, 30)])
        assert session.machine.buffered_samples == session.decodes[0].upto
        session.hear("x")
        assert session.machine.buffered_samples == 0

    def test_a_long_manual_item_joins_its_pieces_and_keeps_no_audio(self) -> None:
        session = Session(MANUAL)
        for _ in range(60):
            session.say([(0.8, 125), (0.0, 25)])
            session.pull()
            while session.decodes:
                session.hear("word")
        assert session.machine._track._timeline.allocated_samples < 16_000 * 200
        session.do(Commit())
        while session.decodes:
            session.hear("word")
        (finished,) = session.do(Finish())
        assert isinstance(finished, Finished)
        assert 10 <= len(finished.transcript.split()) <= 30
