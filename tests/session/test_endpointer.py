"""Endpointing as tables: probabilities in, turns out."""

import pytest

from qwen3_asr_server.domain import FRAME_SAMPLES
from qwen3_asr_server.session.endpointer import Activity, Endpointer, EndpointRules, Turn

RULES = EndpointRules(
    threshold=0.5,
    hysteresis=0.15,
    min_speech_samples=2 * FRAME_SAMPLES,
    pause_samples=3 * FRAME_SAMPLES,
    silence_samples=6 * FRAME_SAMPLES,
)
MANUAL = EndpointRules(0.5, 0.15, 2 * FRAME_SAMPLES, 3 * FRAME_SAMPLES, None)
LEVELS = {"#": 0.9, "-": 0.4, ".": 0.1}
"""`#` is speech, `-` lies between the two thresholds, `.` is silence."""
TURNS = {Turn.STARTED: "S", Turn.PAUSED: "P", Turn.RESUMED: "R", Turn.ENDED: "E", None: " "}


def turns(frames: str, rules: EndpointRules = RULES) -> str:
    endpointer = Endpointer(rules, 0)
    return "".join(TURNS[endpointer.push(LEVELS[frame])] for frame in frames)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param("......", "      ", id="silence"),
        pytest.param("..#...", "      ", id="a click opens nothing"),
        pytest.param(".##...", "  S  P", id="two frames are speech, three of silence a pause"),
        pytest.param(".--#--", "      ", id="between the thresholds nothing begins"),
        pytest.param("##----", " S    ", id="but inside speech it goes on"),
        pytest.param("##..-.", " S  P ", id="after an unvoiced frame only the threshold counts"),
        pytest.param("##..##...", " S      P", id="a short gap is part of speech"),
        pytest.param("##......", " S  P  E", id="the end comes after the whole silence"),
        pytest.param("##...#....", " S  P  E  ", id="a click in a pause does not keep the utterance open"),
        pytest.param("##...##...", " S  P R  P", id="speech in a pause resumes"),
        pytest.param("##....##..", " S  P  R  ", id="speech that rises at the limit still resumes"),
        pytest.param("##......##", " S  P  E S", id="then a new utterance may start"),
        pytest.param("##......#.##", " S  P  E   S", id="not by a click"),
    ],
)
def test_turns(frames: str, expected: str) -> None:
    assert turns(frames) == expected


def test_manual_mode_never_ends() -> None:
    assert turns("##" + "." * 40, MANUAL) == " S  P" + " " * 37


def test_places_are_on_the_track() -> None:
    endpointer = Endpointer(RULES, 1000)
    for frame in "..###....":
        endpointer.push(LEVELS[frame])
    assert endpointer.onset == 1000 + 2 * FRAME_SAMPLES
    assert endpointer.last_speech == 1000 + 5 * FRAME_SAMPLES
    assert endpointer.frontier == 1000 + 9 * FRAME_SAMPLES
    assert endpointer.silence_samples == 4 * FRAME_SAMPLES
    assert endpointer.activity is Activity.PAUSED


def test_speech_is_the_same_whatever_ends_it() -> None:
    """A click in a long pause changes neither the speech before nor the speech after it."""
    frames = "##.......#......." + "##"
    for silence in (4, 40):
        endpointer = Endpointer(EndpointRules(0.5, 0.15, 1024, 1536, silence * FRAME_SAMPLES), 0)
        for frame in frames:
            endpointer.push(LEVELS[frame])
        assert endpointer.onset == 17 * FRAME_SAMPLES


def test_rest_ends_the_utterance() -> None:
    endpointer = Endpointer(RULES, 0)
    for frame in "##...":
        endpointer.push(LEVELS[frame])
    endpointer.rest()
    assert not endpointer.in_utterance
    assert endpointer.silence_samples == 0
