"""Phrases whose words are known to the sample: joined from clips of single words of held-out speakers.

Reads `tests/data/tiny-words`. Audio is float32 at 16 kHz on the 80 ms grid, as engines get it.
"""

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np

from qwen3_asr_server.domain import Word
from support.tiny_speech import DATA, RATE, Samples, on_grid

ALIGNER = DATA / "tiny-aligner"
WORDS = DATA / "tiny-words"


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice that has said every word of its language once."""

    language: str
    clips: dict[str, Samples]


@dataclass(frozen=True, slots=True)
class Phrase:
    """Joined words."""

    language: str
    words: Sequence[Word]
    samples: Samples

    @property
    def text(self) -> str:
        """As a recogniser would write it."""
        return (" " if self.language == "en" else "").join(word.text for word in self.words)


@functools.cache
def speakers() -> Sequence[Speaker]:
    """All of them."""
    lines = (WORDS / "speakers.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(_read(json.loads(line)) for line in lines)


def phrases(
    number: int,
    language: str | None = None,
    *,
    words: tuple[int, int] = (2, 9),
    gaps_s: tuple[float, float] = (0.0, 0.4),
    only: Sequence[str] = (),
) -> list[Phrase]:
    """Make phrases, the same ones each time.

    Args:
        number: how many.
        language: `en`, `zh`, or None for both in turn.
        words: least and most words of a phrase.
        gaps_s: shortest and longest silence between two words, in seconds.
        only: the words to choose from; empty for all.
    """
    made = []
    for n in range(number):
        chance = random.Random(f"{number} {language} {words} {gaps_s} {n}")
        spoken = language or ("en", "zh")[n % 2]
        speaker = chance.choice([speaker for speaker in speakers() if speaker.language == spoken])
        texts = chance.choices(list(only or speaker.clips), k=chance.randint(*words))
        made.append(_join(speaker, texts, [chance.uniform(*gaps_s) for _ in texts]))
    return made


def errors_ms(placed: Sequence[Word], true: Sequence[Word]) -> list[float]:
    """Return how far each start and each end is from the truth, for the same words."""
    assert [word.text for word in placed] == [word.text for word in true]
    return [
        abs(got - right) * 1000 / RATE
        for found, known in zip(placed, true, strict=True)
        for got, right in ((found.start, known.start), (found.end, known.end))
    ]


def _join(speaker: Speaker, texts: Sequence[str], gaps_s: Sequence[float]) -> Phrase:
    parts, words = [np.zeros(RATE // 10, np.float32)], []
    at = len(parts[0])
    for text, gap_s in zip(texts, gaps_s, strict=True):
        clip = speaker.clips[text]
        words.append(Word(text, at, at + len(clip)))
        parts += [clip, np.zeros(round(gap_s * RATE), np.float32)]
        at += len(clip) + len(parts[-1])
    return Phrase(speaker.language, words, on_grid(np.concatenate([*parts, np.zeros(RATE // 5, np.float32)])))


def _read(entry: dict[str, object]) -> Speaker:
    with av.open(str(WORDS / str(entry["file"]))) as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    samples = np.concatenate(frames).astype(np.float32) / 32768
    lengths: dict[str, int] = entry["samples"]  # type: ignore[assignment]
    ends = np.cumsum(list(lengths.values()))
    clips = dict(zip(lengths, np.split(samples, ends[:-1]), strict=True))
    return Speaker(str(entry["language"]), clips)
