"""The aligner on a scripted core: cutting texts and long audio, and what comes out. `tests/vllm` runs the real one."""

import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.engines._aligner import VllmAligner
from qwen3_asr_server.engines._aligner_memory import recogniser_share
from qwen3_asr_server.engines._base import AlignerOptions
from qwen3_asr_server.errors import EngineError, EngineNotReady

GIB = 1 << 30
CLASS = SAMPLE_RATE * 80 // 1000


class ScriptedCore:
    """Hears bursts of noise: the nth unit of a request is the nth burst of its audio, and what is left is its end."""

    class_ms = 80
    classes = 5000

    def __init__(self) -> None:
        self.requests: list[tuple[float, int]] = []

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    async def classes_of(self, windows, units: Sequence[tuple[int, ...]]) -> list[int]:
        audio = np.concatenate([window.samples for window in windows])
        self.requests.append((len(audio) / SAMPLE_RATE, len(units)))
        loud = np.abs(audio[: len(audio) // CLASS * CLASS]).reshape(-1, CLASS).max(axis=1) > 0.1
        edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]])))
        found = [int(edge) for edge in edges[: 2 * len(units)]]
        return found + [len(loud)] * (2 * len(units) - len(found))


def aligner_on(core: ScriptedCore, longest_s: float = 60.0) -> VllmAligner:
    aligner = VllmAligner(AlignerOptions("none"), longest_s=longest_s)
    aligner._core = core  # type: ignore[assignment]
    return aligner


def bursts(places: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """Return audio of `length` classes with noise in each `[start, end)`."""
    audio = np.zeros(length * CLASS, np.float32)
    for start, end in places:
        audio[start * CLASS : end * CLASS] = 0.5
    return audio


async def test_words_are_where_they_are_said_and_stand_as_they_are_written() -> None:
    words = await aligner_on(ScriptedCore()).align(bursts([(1, 4), (5, 9)], 12), "Hello, “it's”!", "en")
    assert [(word.text, word.start // CLASS, word.end // CLASS) for word in words] == [("Hello", 1, 4), ("it's", 5, 9)]


async def test_no_word_ends_after_the_audio() -> None:
    audio = bursts([(1, 4)], 12)[: 5 * CLASS - 100]
    words = await aligner_on(ScriptedCore()).align(audio, "one two", "en")
    assert words[-1].end <= len(audio)


@pytest.mark.parametrize(("text", "language"), [("hello", "ar"), ("สวัสดี", "th"), ("…", "en"), ("", None)])
async def test_without_a_known_language_or_a_word_nobody_is_asked(text: str, language: str | None) -> None:
    core = ScriptedCore()
    assert list(await aligner_on(core).align(bursts([(1, 4)], 12), text, language)) == []
    assert core.requests == []


@given(st.data())
@settings(max_examples=60)
async def test_long_audio_is_gone_through_window_by_window(data: st.DataObject) -> None:
    places, at = [], 0
    for _ in range(data.draw(st.integers(1, 60))):
        start = at + data.draw(st.sampled_from([1, 1, 1, 2, 5, 30]))
        at = start + data.draw(st.integers(2, 6))
        places.append((start, at))
    core = ScriptedCore()
    text = " ".join("abcd" for _ in places)
    words = await aligner_on(core, longest_s=10.0).align(bursts(places, at + 5), text, "en")
    assert [(word.start // CLASS, word.end // CLASS) for word in words] == places
    assert all(seconds <= 10.0 for seconds, _ in core.requests)


async def test_text_without_speech_comes_to_an_end() -> None:
    words = await aligner_on(ScriptedCore(), longest_s=4.0).align(np.zeros(40 * SAMPLE_RATE, np.float32), "a b c", "en")
    assert len(words) == 3
    assert all(word.start <= word.end <= 40 * SAMPLE_RATE for word in words)


@pytest.mark.parametrize(
    ("text", "language", "named"), [("今日はいい天気", "ja", "'nagisa'"), ("한국어 좋아요", "ko", "'soynlp'")]
)
async def test_a_missing_package_is_named(
    text: str, language: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("nagisa", "soynlp", "soynlp.tokenizer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=named):
        await aligner_on(ScriptedCore()).align(bursts([(1, 4)], 12), text, language)


async def test_what_does_not_run_says_so() -> None:
    aligner = VllmAligner(AlignerOptions("none"))
    with pytest.raises(EngineNotReady):
        await aligner.align(bursts([(1, 4)], 12), "one", "en")
    assert not aligner.dead
    await aligner.stop()


@pytest.mark.parametrize(
    ("share", "reserved", "total", "left"),
    [(0.5, 0, 24 * GIB, 0.5), (0.5, 4 * GIB, 40 * GIB, 0.4), (0.9, 4 * GIB, 80 * GIB, 0.85)],
)
def test_the_aligners_bytes_are_taken_from_the_share_of_both(
    share: float, reserved: int, total: int, left: float
) -> None:
    assert recogniser_share(share, reserved, total) == pytest.approx(left)


def test_a_card_without_room_for_both_is_refused_with_what_to_set() -> None:
    with pytest.raises(EngineNotReady, match=r"above 0\.55"):
        recogniser_share(0.5, 4 * GIB, 8 * GIB)
