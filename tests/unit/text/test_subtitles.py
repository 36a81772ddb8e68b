import re
import unicodedata
from dataclasses import replace
from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.domain import SAMPLE_RATE, Word
from qwen3_asr_server.text.subtitles import (
    CUE_LINES,
    LINE_COLUMNS,
    as_json,
    as_srt,
    as_text,
    as_verbose_json,
    as_vtt,
    cues_of,
)
from qwen3_asr_server.text.transcript import Segment, Transcript

S = SAMPLE_RATE
LATIN = (
    "Welcome to the show. Today (as always) we talk about 'speech recognition', its promises, and its many, many "
    "failures; you may have met some of them yourself! Have you?"
)
CHINESE = "今天天气很好，我们去公园散步吧。“你说什么？”他问道，然后就再也没有说话，一直走到了公园门口才停下来。"


def transcript(*segments, duration=3600 * S, channels=(0,)):
    return Transcript(tuple(segments), duration, channels=channels)


def spoken(text, start_s=0.0, word_s=0.4, gaps=()):
    """Return a segment whose words take so long each; after the words named in `gaps` is silence of 2 s."""
    words, at = [], start_s
    for word in re.findall(r"[\w']+", text):
        words.append(Word(word, round(at * S), round((at + word_s) * S)))
        at += word_s + 2.0 * (word in gaps)
    return Segment(text, round(start_s * S), words[-1].end, words=tuple(words))


def test_srt():
    assert as_srt(transcript(Segment("Hello there.", S, 3 * S), Segment("Bye --> now", 3723 * S, 3725 * S))) == (
        "1\n00:00:01,000 --> 00:00:03,000\nHello there.\n\n2\n01:02:03,000 --> 01:02:05,000\nBye -> now\n"
    )


def test_vtt():
    assert as_vtt(transcript(Segment("a < b & c > d", S, 3 * S))) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:03.000\na &lt; b &amp; c &gt; d\n"
    )


def test_channels_are_told_apart():
    both = transcript(Segment("Hello?", S, 3 * S), Segment("Hi!", 2 * S, 3 * S, channel=1), channels=(0, 1))
    assert "[0] Hello?" in as_srt(both)
    assert "[1] Hi!" in as_srt(both)
    assert "<v Channel 1>Hi!" in as_vtt(both)
    assert "[" not in as_srt(both.of_channel(1))


ONE_SPEAKS = transcript(Segment("Hi!", 2 * S, 3 * S, channel=1), duration=4 * S, channels=(0, 1))
NOBODY_SPEAKS = transcript(duration=4 * S, channels=(0, 1))


@pytest.mark.parametrize(
    ("render", "one", "nobody"),
    [
        (as_text, "[1] Hi!\n", "\n"),
        (as_srt, "1\n00:00:02,000 --> 00:00:03,000\n[1] Hi!\n", ""),
        (as_vtt, "WEBVTT\n\n00:00:02.000 --> 00:00:03.000\n<v Channel 1>Hi!\n", "WEBVTT\n"),
    ],
)
def test_a_channel_keeps_its_number_though_the_others_are_silent(render, one, nobody):
    assert (render(ONE_SPEAKS), render(NOBODY_SPEAKS)) == (one, nobody)


@pytest.mark.parametrize("render", [as_json, as_verbose_json])
def test_silent_channels_are_listed(render):
    silent = {"channel": 0, "text": ""}
    assert render(ONE_SPEAKS, channels=True)["channels"] == [silent, {"channel": 1, "text": "Hi!"}]
    assert render(NOBODY_SPEAKS, channels=True)["channels"] == [silent, {"channel": 1, "text": ""}]
    assert "channels" not in render(ONE_SPEAKS)


@pytest.mark.parametrize("apart", [True, False])
def test_words_of_channels_are_in_the_order_of_time(apart):
    left, right = spoken("one two three", word_s=1.0), replace(spoken("yes no", 0.5, word_s=1.0), channel=1)
    found = as_verbose_json(transcript(left, right, channels=(0, 1)), words=True, channels=apart)["words"]
    assert [word["start"] for word in found] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [word["word"] for word in found] == ["one", "yes", "two", "no", "three"]
    assert [word.get("channel") for word in found] == ([0, 1, 0, 1, 0] if apart else [None] * 5)


def test_nothing_said():
    silent = transcript()
    assert (as_text(silent), as_srt(silent), as_vtt(silent)) == ("\n", "", "WEBVTT\n")
    assert as_json(silent) == {"text": ""}
    assert as_verbose_json(silent)["language"] == ""


def test_long_latin_text_is_broken_where_clauses_end():
    cues = cues_of(transcript(Segment(LATIN, 0, 12 * S)))
    assert [cue.lines for cue in cues] == [
        ("Welcome to the show. Today (as always)", "we talk about 'speech recognition',"),
        ("its promises, and its many, many failures;", "you may have met some of them yourself!"),
        ("Have you?",),
    ]


def test_full_width_text_has_half_the_characters_in_a_line():
    cues = cues_of(transcript(Segment(CHINESE, 0, 12 * S)))
    assert [cue.lines for cue in cues] == [
        ("今天天气很好，我们去公", "园散步吧。“你说什么？”"),
        ("他问道，然后就再也没有说话，", "一直走到了公园门口才停下来。"),
    ]


def test_times_of_words_are_used():
    text = "One two three four. Five six"
    (cue,) = cues_of(transcript(spoken(text, 10.0)))
    assert (cue.start, cue.end) == (10 * S, round(12.4 * S))
    first, second = cues_of(transcript(spoken(text, 10.0, gaps={"four"})))
    assert first.lines == ("One two three four.",)
    assert (first.start, first.end) == (10 * S, round(11.6 * S))
    assert second.start == round(13.6 * S)


def test_letters_that_are_two_in_lower_case_do_not_hide_the_words():
    (cue,) = cues_of(transcript(spoken("İstanbul ve İzmir", word_s=1.5)))
    assert (cue.start, cue.end) == (0, round(4.5 * S))


def test_words_that_do_not_stand_in_the_text_are_no_harm():
    segment = Segment("It is 5 o'clock.", 0, 3 * S, words=(Word("zzz", 0, S), Word("clock", S, 2 * S)))
    (cue,) = cues_of(transcript(segment))
    assert cue.lines == ("It is 5 o'clock.",)
    assert cue.end == 2 * S


def test_a_short_cue_stays_to_be_read():
    first, second = cues_of(transcript(Segment("No.", S, S + 100), Segment("Yes.", S + 4000, S + 5000)))
    assert (first.end, second.end) == (second.start, second.start + S)


@pytest.mark.parametrize("words", [False, True])
def test_verbose_json(words):
    segment = Segment("Hello.", S, 3 * S, language="en", words=(Word("Hello", S, 2 * S),), confidence=1.0)
    answer = as_verbose_json(transcript(segment, duration=5 * S), words=words)
    assert answer["segments"][0] == {
        "id": 0,
        "seek": 0,
        "start": 1.0,
        "end": 3.0,
        "text": "Hello.",
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": 0.0,
        "no_speech_prob": 0.0,
    }
    assert answer.get("words") == ([{"word": "Hello", "start": 1.0, "end": 2.0}] if words else None)
    assert {name: answer[name] for name in ("task", "language", "duration", "text")} == {
        "task": "transcribe",
        "language": "english",
        "duration": 5.0,
        "text": "Hello.",
    }
    assert "segments" not in as_verbose_json(transcript(segment), segments=False)


TEXTS = st.text(st.sampled_from("ab c.,!你好，。 (\"'-"), min_size=1, max_size=300).map(str.strip).filter(bool)


@given(st.lists(st.tuples(TEXTS, st.integers(1, 30 * S), st.integers(0, 3 * S)), max_size=4), st.booleans())
def test_cues_are_short_and_in_order_and_lose_nothing(parts, with_words):
    at, segments = 0, []
    for text, length, gap in parts:
        found = [match.group() for match in re.finditer(r"\w+", text)]
        step = length // max(1, len(found))
        words = tuple(Word(word, at + n * step, at + (n + 1) * step) for n, word in enumerate(found))
        segments.append(Segment(text, at, at + length, words=words if with_words else ()))
        at += length + gap
    cues = cues_of(transcript(*segments))
    shown = "".join("".join(cue.lines) for cue in cues)
    assert "".join(shown.split()) == "".join("".join(segment.text for segment in segments).split())
    for cue, following in zip_longest(cues, cues[1:]):
        assert cue.start < cue.end
        assert following is None or cue.end <= following.start or cue.end == cue.start + 1
        assert 1 <= len(cue.lines) <= CUE_LINES
        for line in cue.lines:
            assert line == line.strip()
            columns = sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)
            assert columns <= LINE_COLUMNS or not re.search(r"\w[^\w]*\s[^\w]*\w", line)
