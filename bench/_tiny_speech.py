"""Speech that the tiny Qwen3-ASR checkpoint understands, another one for every session.

Held-out clips of `tests/data/tiny-speech` in an order, at a speed and at a loudness of the session's own, with faint
noise of its own, so that no two sessions share a second of audio. The same number always gives the same speech. Used
by the benchmarks of the engine vllm; knows no server and no engine.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soxr

Samples = npt.NDArray[np.float32]

RATE = 16_000
GRID = 1_280
CHECKPOINT = Path(__file__).resolve().parents[1] / "tests" / "data" / "tiny-qwen3-asr"
NOISE = 3e-4
"""Root mean square, -70 dB of full scale."""

_DATA = CHECKPOINT.parent / "tiny-speech"
_AUDIBLE = 0.01
_GAP_S = 0.16


@dataclass(frozen=True, slots=True)
class Spoken:
    """An utterance and where its speech is, in samples from the start of the session."""

    begin: int
    """First audible sample."""
    end: int
    """One past the last audible sample."""
    language: str


@dataclass(frozen=True, slots=True)
class Talk:
    """What one session says."""

    samples: Samples
    """float32 [n], 16 kHz."""
    utterances: Sequence[Spoken]


def talk(number: int, seconds: float, *, pause_s: float = 1.2, clips: int = 2) -> Talk:
    """Return utterances of one to `clips` clips with pauses before, between and after them.

    Args:
        number: of the session; decides everything else.
        seconds: length of the whole.
        pause_s: shortest pause; each is up to half a second longer.
        clips: most clips in an utterance.
    """
    rng = np.random.default_rng(number)
    voice = _Voice(rng)
    parts: list[Samples] = []
    utterances: list[Spoken] = []
    length = 0
    while True:
        pause = np.zeros(round((pause_s + rng.random() / 2) * RATE), np.float32)
        language, speech = voice.utterance(int(rng.integers(1, clips + 1)))
        if length + len(pause) + len(speech) + pause_s * RATE > seconds * RATE:
            break
        audible = np.flatnonzero(np.abs(speech) > _AUDIBLE)
        at = length + len(pause)
        utterances.append(Spoken(at + int(audible[0]), at + int(audible[-1]) + 1, language))
        parts += [pause, speech]
        length = at + len(speech)
    parts.append(np.zeros(round(seconds * RATE) - length, np.float32))
    return Talk(_with_noise(np.concatenate(parts), rng), utterances)


def dictation(number: int, seconds: float) -> Samples:
    """Return speech in one language without a pause that would end an utterance: float32 [n]."""
    rng = np.random.default_rng(10_000 + number)
    voice = _Voice(rng)
    parts: list[Samples] = []
    while sum(map(len, parts)) < seconds * RATE:
        parts += [voice.utterance(4)[1], np.zeros(round(_GAP_S * RATE), np.float32)]
    return _with_noise(np.concatenate(parts)[: round(seconds * RATE)], rng)


class _Voice:
    """The clips in an order, at a speed and at a loudness that nobody else has."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._speed = 0.92 + 0.16 * rng.random()
        self._gain = np.float32(0.6 + 0.4 * rng.random())
        self._language = str(rng.choice(["en", "zh"]))
        self._order: list[Samples] = []

    def utterance(self, clips: int) -> tuple[str, Samples]:
        parts = []
        for _ in range(clips):
            parts += [self._clip(), np.zeros(round(_GAP_S * RATE), np.float32)]
        return self._language, np.concatenate(parts[:-1])

    def _clip(self) -> Samples:
        if not self._order:
            pool = [samples for language, samples in _clips() if language == self._language]
            self._order = [pool[index] for index in self._rng.permutation(len(pool))]
        faster = soxr.resample(self._order.pop(), RATE * self._speed, RATE)
        return np.asarray(faster * self._gain, np.float32)


@functools.cache
def _clips() -> Sequence[tuple[str, Samples]]:
    """Return language and samples of each clip."""
    found = []
    for line in (_DATA / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        with av.open(str(_DATA / entry["file"])) as container:
            frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
        found.append((entry["language"], np.concatenate(frames).astype(np.float32) / np.float32(32768)))
    return found


def _with_noise(samples: Samples, rng: np.random.Generator) -> Samples:
    noise = rng.standard_normal(len(samples), np.float32) * np.float32(NOISE)
    return np.clip(samples + noise, -1, 1)
