"""What a session tells its engine of the language it was in: a hint for speech that is too short to tell."""

from dataclasses import replace

import numpy as np
import pytest

from qwen3_asr_server.domain import Hypothesis, SessionConfig, StepKind, TurnDetection
from qwen3_asr_server.messages import AppendAudio, Configure, Decode, Event, Final, Heard, Scored, ScoreFrames
from qwen3_asr_server.session.machine import SessionMachine
from qwen3_asr_server.session.options import SessionOptions
from support.session_sim import audio

VAD = SessionConfig(turn_detection=TurnDetection(silence_ms=800))
LONG, SHORT = 60, 10
"""Frames of speech: 1.9 s and 0.3 s."""


def listen(
    said: list[tuple[str, str | None, int]], config: SessionConfig = VAD, later: SessionConfig | None = None
) -> tuple[list[str | None], list[Final]]:
    """Let a session hear utterances of (text, language, frames); return what each was expected in, and the finals.

    A new configuration, if there is one, comes before the last utterance.
    """
    machine = SessionMachine(config, SessionOptions(), 0.0)
    expected: list[str | None] = []
    events: list[Event] = []
    for number, (text, language, frames) in enumerate(said):
        if later is not None and number == len(said) - 1:
            machine.handle(Configure(later), 0.0)
        machine.handle(AppendAudio(audio([(0.0, 20), (0.8, frames), (0.0, 30)])), 0.0)
        options = set()
        while jobs := machine.jobs_to_run():
            for job in jobs:
                match job:
                    case ScoreFrames():
                        machine.outcome(Scored(job.epoch, np.abs(job.frames).mean(axis=1).astype(np.float32)), 0.0)
                    case Decode():
                        options.add(job.options.expected_language)
                        final = job.kind is not StepKind.PARTIAL
                        heard = Hypothesis(text, job.options.language or language, final=final)
                        machine.outcome(Heard(job.piece, job.kind, job.upto, heard), 0.0)
                    case _:
                        pass
        assert len(options) == 1, "a piece keeps what is expected of it"
        expected += options
        events += machine.events_to_send()
    return expected, [event for event in events if isinstance(event, Final)]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], None),
        ([("one", "en", LONG)], None),
        ([("one", "en", LONG), ("two", "en", LONG)], "en"),
        ([("一", "zh", LONG), ("one", "en", LONG), ("two", "en", LONG)], "en"),
        ([("one", "en", LONG), ("一", "zh", LONG)], None),
        ([("one", "en", LONG), ("一", "zh", LONG), ("two", "en", LONG)], None),
        ([("one", "en", LONG), ("two", "en", LONG), ("是", "zh", SHORT), ("对", "zh", SHORT)], "en"),
        ([("one", "en", LONG), ("two", "en", LONG), ("是的", "zh", LONG), ("对", "zh", LONG)], "zh"),
        ([("one", "en", SHORT), ("two", "en", SHORT)], None),
        ([("one", "en", LONG), ("", None, LONG), ("two", "en", LONG)], "en"),
        ([("one", None, LONG), ("two", None, LONG)], None),
    ],
    ids=[
        "nothing said",
        "one text",
        "two texts",
        "the last two count",
        "two languages",
        "speakers who mix",
        "short texts do not flip it",
        "long ones do",
        "short texts establish nothing",
        "silence is no evidence",
        "nobody knows the language",
    ],
)
def test_what_is_expected_of_the_next_utterance(said: list[tuple[str, str | None, int]], expected: str | None) -> None:
    hints, _ = listen([*said, ("yes", "en", SHORT)])
    assert hints[-1] == expected


def test_what_the_engine_hears_is_told_as_it_is() -> None:
    """The machine only hints: the engine weighs the evidence."""
    _, finals = listen([("one", "en", LONG), ("two", "en", LONG), ("好", "zh", SHORT)])
    assert [(final.text, final.language) for final in finals] == [("one", "en"), ("two", "en"), ("好", "zh")]


def test_a_forced_language_establishes_none() -> None:
    forced = replace(VAD, language="en")
    hints, finals = listen([("one", "en", LONG), ("two", "en", LONG), ("好", "zh", SHORT)], forced, later=VAD)
    assert hints == [None, None, None]
    assert [final.language for final in finals] == ["en", "en", "zh"]
