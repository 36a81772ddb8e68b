"""Word times of an aligner: asked for early, waited for a little, told in order. In virtual time."""

from collections.abc import Sequence

import numpy as np
import pytest

from qwen3_asr_server.domain import Hypothesis, SessionConfig, StepKind, Word
from qwen3_asr_server.errors import EngineTimeout
from qwen3_asr_server.messages import (
    Align,
    Aligned,
    AppendAudio,
    Clear,
    Command,
    Decode,
    DecodeFailed,
    Event,
    Final,
    Finish,
    Finished,
    Heard,
    Partial,
    Scored,
    ScoreFrames,
    UtteranceFailed,
)
from qwen3_asr_server.session.machine import SessionMachine
from qwen3_asr_server.session.options import SessionOptions
from support.session_sim import Script, audio

WORDS = SessionConfig(words=True)
ALIGNED = SessionOptions(align_words=True)
SPEECH: Script = [(0.8, 40), (0.0, 8)]
SILENCE: Script = [(0.0, 30)]
PLACED = (Word("hello", 0, 1600), Word("there", 3200, 4800))


class Talk:
    """A session whose detector answers at once; decodes and alignments wait until the test answers them."""

    def __init__(self, config: SessionConfig = WORDS, options: SessionOptions = ALIGNED) -> None:
        self.machine = SessionMachine(config, options, 0.0)
        self.now = 0.0
        self.decodes: list[Decode] = []
        self.aligns: list[Align] = []

    def do(self, command: Command) -> list[Event]:
        self.machine.handle(command, self.now)
        return self._work()

    def say(self, *scripts: Script) -> list[Event]:
        return [event for script in scripts for event in self.do(AppendAudio(audio(script)))]

    def hear(self, text: str = "hello there", words: Sequence[Word] = ()) -> list[Event]:
        job = self.decodes.pop(0)
        known = Hypothesis(text, "en", words, final=job.kind is not StepKind.PARTIAL)
        self.machine.outcome(Heard(job.piece, job.kind, job.upto, known), self.now)
        return self._work()

    def place(self, words: Sequence[Word] = PLACED) -> list[Event]:
        job = self.aligns.pop(0)
        self.machine.outcome(Aligned(job.piece, job.upto, words), self.now)
        return self._work()

    def wait(self, seconds: float) -> list[Event]:
        self.now += seconds
        self.machine.tick(self.now)
        return self._work()

    def _work(self) -> list[Event]:
        while jobs := self.machine.jobs_to_run():
            for job in jobs:
                match job:
                    case ScoreFrames():
                        scores = np.abs(job.frames).mean(axis=1).astype(np.float32)
                        self.machine.outcome(Scored(job.epoch, scores), self.now)
                    case Decode():
                        self.decodes.append(job)
                    case Align():
                        self.aligns.append(job)
                    case _:
                        pass
        return self.machine.events_to_send()


def finals(events: Sequence[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def test_the_words_of_a_candidate_are_there_when_it_comes_true() -> None:
    talk = Talk()
    talk.say([(0.0, 10)], SPEECH)
    shown = talk.hear()
    assert [type(event) for event in shown] == [Partial]
    (align,) = talk.aligns
    assert (align.text, align.language, align.piece) == ("hello there", "en", 0)
    assert len(align.audio) == align.upto - max(0, 10 * 512 - 4800)
    assert talk.place() == []
    (final,) = finals(talk.say(SILENCE))
    start = align.upto - len(align.audio)
    assert final.words == tuple(word.shifted(start) for word in PLACED)
    assert talk.machine.words_missed == 0


def test_a_final_waits_for_its_words_and_is_told_as_soon_as_they_come() -> None:
    talk = Talk()
    talk.say(SPEECH, SILENCE)
    assert talk.hear() == []
    assert talk.wait(0.299) == []
    (final,) = finals(talk.place())
    assert final.words == PLACED


def test_a_final_goes_without_words_that_take_too_long() -> None:
    talk = Talk()
    talk.say(SPEECH, SILENCE)
    talk.hear()
    assert talk.machine.next_timeout() == pytest.approx(0.3)
    (final,) = finals(talk.wait(0.3))
    assert (final.text, final.words) == ("hello there", None)
    assert talk.machine.words_missed == 1
    assert talk.place() == []
    assert talk.machine.stale_outcomes == 1


def test_words_that_could_not_be_placed_keep_nobody_waiting() -> None:
    talk = Talk()
    talk.say(SPEECH, SILENCE)
    talk.hear()
    (final,) = finals(talk.place(()))
    assert final.words is None
    assert talk.machine.words_missed == 1


def test_finals_that_wait_stay_in_order() -> None:
    talk = Talk()
    talk.say(SPEECH, SILENCE, SPEECH, SILENCE)
    talk.hear("one")
    talk.hear("two")
    talk.aligns.reverse()
    assert talk.place([Word("two", 0, 80)]) == []
    assert [final.text for final in finals(talk.place([Word("one", 0, 80)]))] == ["one", "two"]


def test_each_final_waits_at_most_as_long_as_it_is_first() -> None:
    talk = Talk()
    talk.say(SPEECH, SILENCE, SPEECH, SILENCE)
    talk.hear("one")
    talk.hear("two")
    assert [final.text for final in finals(talk.wait(0.3))] == ["one"]
    assert [final.text for final in finals(talk.wait(0.3))] == ["two"]


def test_words_of_a_candidate_are_forgotten_when_speech_goes_on() -> None:
    talk = Talk()
    talk.say(SPEECH)
    talk.hear("hello")
    talk.say(SPEECH, SILENCE)
    talk.hear("hello there")
    assert talk.place([Word("hello", 0, 80)]) == []
    (final,) = finals(talk.place())
    assert final.words == PLACED


def test_finish_waits_for_the_words_of_the_last_final() -> None:
    talk = Talk()
    talk.say(SPEECH)
    talk.do(Finish())
    talk.hear()
    events = talk.place()
    assert [type(event) for event in events] == [Final, Finished]
    assert talk.machine.next_timeout() is None


def test_an_utterance_that_fails_waits_for_nothing() -> None:
    talk = Talk()
    talk.say(SPEECH)
    talk.hear()
    talk.say(SPEECH, SILENCE)
    failed: list[Event] = []
    while talk.decodes:
        job = talk.decodes.pop(0)
        talk.machine.outcome(DecodeFailed(job.piece, job.kind, EngineTimeout("too slow")), talk.now)
        failed += talk._work()
    assert [type(event) for event in failed] == [UtteranceFailed]


def test_what_is_cleared_is_not_waited_for() -> None:
    talk = Talk()
    talk.say(SPEECH)
    talk.hear()
    talk.do(Clear())
    assert talk.place() == []
    assert talk.machine.stale_outcomes == 1


@pytest.mark.parametrize(
    ("config", "options", "text", "words"),
    [
        (SessionConfig(), ALIGNED, "hello", ()),
        (WORDS, SessionOptions(), "hello", ()),
        (WORDS, ALIGNED, "", ()),
        (WORDS, ALIGNED, "hello", [Word("hello", 0, 80)]),
    ],
    ids=["not asked for", "no aligner", "nothing said", "the engine's own"],
)
def test_nobody_is_asked_without_need(
    config: SessionConfig, options: SessionOptions, text: str, words: Sequence[Word]
) -> None:
    talk = Talk(config, options)
    talk.say(SPEECH, SILENCE)
    (final,) = finals(talk.hear(text, words))
    assert talk.aligns == []
    assert final.words == (tuple(words) or None)
    assert talk.machine.words_missed == 0
