"""The benchmark of recordings: what it counts, what it finds, what it writes."""

import json
from pathlib import Path

import offline
import pytest
from _scoring import NORMALISERS, Score, pooled, score
from offline import Outcome, Recording

from support import speech


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("plain", "Hello,  WORLD – it’s 5 o'clock!", "hello world it's 5 o'clock"),
        ("plain", "ＡＢＣ 你好，世界。", "abc 你好 世界"),
        ("english", "You're on 42nd; we'll call.", "you are on four two nd we will call"),
    ],
)
def test_normalisers(name: str, text: str, expected: str) -> None:
    assert NORMALISERS[name](text) == expected


def test_the_english_normaliser_is_that_of_the_tests() -> None:
    for clip in speech.prompts():
        assert NORMALISERS["english"](clip.text) == speech.normalise(clip.text)


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        ("one two three", "one two three", Score(3, 0, 11, 0)),
        ("one two three", "one too", Score(3, 2, 11, 6)),
        ("one", "", Score(1, 1, 3, 3)),
        ("file name", "filename", Score(2, 2, 8, 0)),
        ("你好世界", "你好世間", Score(1, 1, 4, 1)),
    ],
)
def test_errors(said: str, heard: str, expected: Score) -> None:
    assert score(said, heard, NORMALISERS["plain"]) == expected


def test_long_texts_count_more() -> None:
    both = pooled([Score(9, 0, 30, 0), Score(1, 1, 10, 10)])
    assert (both.wer, both.cer) == (0.1, 0.25)


def test_a_reference_without_words() -> None:
    with pytest.raises(ValueError, match="no words"):
        score("…", "hello", NORMALISERS["plain"])


def test_references_stand_beside_the_audio_or_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.wav", "a.txt", "deep/b.MP3", "deep/b.txt", "no-text.wav", "no-audio.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(json.dumps({"file": name, "text": "said"}) + "\n" for name in ("z.wav", "deep/b.MP3")))
    assert offline.recordings_in(tmp_path) == [
        Recording(tmp_path / "a.wav", "text of a.txt"),
        Recording(tmp_path / "deep/b.MP3", "text of deep/b.txt"),
    ]
    assert offline.recordings_in(manifest) == [
        Recording(tmp_path / "deep/b.MP3", "said"),
        Recording(tmp_path / "z.wav", "said"),
    ]


def test_the_table_says_how_fast_and_how_well() -> None:
    outcomes = [Outcome("a", 10.0, 1.0, "x", Score(10, 1, 40, 2)), Outcome("b", 30.0, 6.0, "y", Score(30, 3, 60, 8))]
    found = offline.summary(outcomes, 5.0)
    assert (found["rtf"], found["wer"], found["cer"]) == (0.125, 0.1, 0.1)
    assert found["file_rtf"] == {"p50": 0.2, "p95": 0.2, "p99": 0.2}
    assert [each["wer"] for each in found["each"]] == [0.1, 0.1]
    circumstances = {
        "date": "2026-11-21", "commit": "c", "cores": 2, "cpu": "p", "python": "3.11", "load_before": 0, "versions": {},
        "note": "", "engine": "fake", "model": "none", "set": "s", "at_once": 2, "normaliser": "english",
    }  # fmt: skip
    *_, last = offline.table([circumstances | found])
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells == [
        *("fake, none", "s", "2", "40 s", "2", "0.125"),
        *("0.20 / 0.20 / 0.20", "6.00 / 6.00 / 6.00", "10.0", "10.0", "`english`"),
    ]
