"""The held-out clips that the tiny Qwen3-ASR checkpoint understands, and where that is.

Reads `tests/data/tiny-speech`. Audio is float32 at 16 kHz on the 80 ms grid, as engines get it.
"""

import functools
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soxr

Samples = npt.NDArray[np.float32]

RATE = 16_000
GRID = 1280
DATA = Path(__file__).resolve().parents[1] / "data"
CHECKPOINT = DATA / "tiny-qwen3-asr"


@dataclass(frozen=True, slots=True)
class TinyClip:
    """A clip and what is said in it."""

    name: str
    language: str
    text: str
    samples: Samples
    """float32 [n], n a multiple of 1280; read-only."""


@functools.cache
def tiny_clips() -> Sequence[TinyClip]:
    """All clips."""
    lines = (DATA / "tiny-speech" / "clips.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(_read(json.loads(line)) for line in lines)


def spoken(language: str) -> Sequence[TinyClip]:
    """The clips in one language."""
    return [clip for clip in tiny_clips() if clip.language == language]


def joined(clips: Iterable[TinyClip], gap_s: float = 0.16) -> Samples:
    """Clips one after the other, with silence between them."""
    gap = np.zeros(round(gap_s * RATE / GRID) * GRID, np.float32)
    parts = [part for clip in clips for part in (clip.samples, gap)]
    return np.concatenate(parts[:-1])


def long_audio(seconds: float) -> Iterator[Samples]:
    """Clips of one language joined up to a length, without end, no two alike."""
    for turn in itertools.count():
        pool = spoken(("en", "zh")[turn % 2])
        audio = np.empty(0, np.float32)
        for clip in itertools.cycle([*pool[turn % len(pool) :], *pool[: turn % len(pool)]]):
            if len(audio) + len(clip.samples) > seconds * RATE:
                break
            audio = np.concatenate([audio, clip.samples, np.zeros(2 * GRID, np.float32)])
        yield audio


def varied_audio(count: int, longest_s: float = 28.0, seed: int = 1) -> Iterator[Samples]:
    """Audio of one language each, no two alike: clips at other speeds and loudness, joined, the more the rarer."""
    chance = random.Random(seed)
    for number in range(count):
        pool = spoken(("en", "zh")[number % 2])
        audio = np.empty(0, np.float32)
        for _ in range(chance.choice([1, 1, 2, 2, 3, 4, 6, 9, 14, 20])):
            clip = soxr.resample(chance.choice(pool).samples, RATE, round(RATE / chance.uniform(0.92, 1.08)))
            gap = np.zeros(chance.randint(0, 5) * GRID, np.float32)
            if len(audio) + len(gap) + len(clip) > longest_s * RATE - GRID:
                break
            audio = np.concatenate([audio, gap, clip])
        yield on_grid((audio * chance.uniform(0.2, 1.0)).astype(np.float32))


def on_grid(samples: Samples) -> Samples:
    """Fill up with silence to whole 80 ms."""
    return np.pad(samples, (0, -len(samples) % GRID))


def _read(entry: dict[str, str]) -> TinyClip:
    path = DATA / "tiny-speech" / entry["file"]
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    samples = on_grid(np.concatenate(frames).astype(np.float32) / 32768)
    samples.flags.writeable = False
    return TinyClip(path.stem, entry["language"], entry["text"], samples)
