"""Real and synthesised speech with its words, for every test that needs some.

Reads `tests/data/speech` (sources and licences: the README there). Audio comes as float32 at 16 kHz, the
form the core uses; `pcm16` gives the bytes a client would send. Nothing here knows the server.
"""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import jiwer
import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

RATE = 16_000
DATA = Path(__file__).resolve().parents[1] / "data" / "speech"
CONVERSATION_WAV = DATA / "conversation.wav"

_CONTRACTIONS = {"'re": " are", "'m": " am", "'ll": " will", "'ve": " have"}
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording and what is said in it."""

    name: str
    samples: Samples
    """float32 [n], mono, 16 kHz, in [-1, 1]; read-only."""
    text: str
    path: Path
    """The stored file: FLAC, or WAV for the conversation."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE

    @property
    def pcm16(self) -> bytes:
        """The audio as a client sends it: s16le, mono, 16 kHz."""
        return pcm16(self.samples)


@dataclass(frozen=True, slots=True)
class Turn:
    """One prompt inside the conversation."""

    name: str
    text: str
    start_s: float
    end_s: float


@functools.cache
def prompts() -> Sequence[Clip]:
    """All human prompts, about 300 s and 700 words."""
    return _read_manifest("prompts.jsonl")


def clip(name: str) -> Clip:
    """One human prompt by name, for example `queue-thankyou`."""
    return next(found for found in prompts() if found.name == name)


@functools.cache
def long_clip(name: str) -> Clip:
    """A synthesised paragraph: `paragraph_35s`, `paragraph_75s` or `nonstop_30s`."""
    return next(found for found in _read_manifest("paragraphs.jsonl") if found.name == name)


@functools.cache
def conversation() -> Clip:
    """Four prompts with 1.2 s between them; the stored file is a WAV."""
    entry = json.loads((DATA / "conversation.json").read_text(encoding="utf-8"))
    return _read_clip(entry)


def conversation_turns() -> list[Turn]:
    """Where the four prompts stand in the conversation."""
    entry = json.loads((DATA / "conversation.json").read_text(encoding="utf-8"))
    return [Turn(**turn) for turn in entry["turns"]]


def joined(names: Iterable[str], gap_s: float) -> Samples:
    """Prompts one after the other with digital silence between them, none before or after."""
    gap = np.zeros(round(gap_s * RATE), np.float32)
    parts: list[Samples] = []
    for name in names:
        parts += [gap, clip(name).samples] if parts else [clip(name).samples]
    return np.concatenate(parts)


def pcm16(samples: Samples) -> bytes:
    """Float samples as s16le bytes; exact for audio that came from 16 bits."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def normalise(text: str) -> str:
    """Bring two spellings of the same speech together: lower case, digits as words, no punctuation.

    Hyphens separate words; `*` is star and `#` is pound; each digit is a word of its own; "you're" and the like are
    two words, other apostrophes inside words stay.
    """
    text = text.lower().replace("*", " star ").replace("#", " pound ")
    for short, full in _CONTRACTIONS.items():
        text = re.sub(rf"(?<=\w){short}\b", full, text)
    text = re.sub(r"[0-9]", lambda digit: f" {_DIGITS[int(digit[0])]} ", text)
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text))


def wer(reference: str | Sequence[str], hypothesis: str | Sequence[str]) -> float:
    """Word error rate after `normalise`, pooled over all pairs when lists are given; 0.1 is 10 %.

    A compound is not an error when one text writes it as one word and the other as two.
    """
    references = [reference] if isinstance(reference, str) else list(reference)
    hypotheses = [hypothesis] if isinstance(hypothesis, str) else list(hypothesis)
    pairs = [
        _same_compounds(normalise(said), normalise(heard)) for said, heard in zip(references, hypotheses, strict=True)
    ]
    return float(jiwer.wer([said for said, _ in pairs], [heard for _, heard in pairs]))


def _same_compounds(one: str, other: str) -> tuple[str, str]:
    """Write "file name" as "filename" in either text where the other one does."""
    return _compound_as_in(other, one), _compound_as_in(one, other)


def _compound_as_in(model: str, text: str) -> str:
    known = set(model.split())
    words: list[str] = []
    for word in text.split():
        if words and words[-1] + word in known:
            words[-1] += word
        else:
            words.append(word)
    return " ".join(words)


def _read_manifest(name: str) -> Sequence[Clip]:
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return tuple(_read_clip(json.loads(line)) for line in lines)


def _read_clip(entry: dict[str, str]) -> Clip:
    path = DATA / entry["file"]
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    samples = np.concatenate(frames).astype(np.float32) / 32768
    samples.flags.writeable = False
    return Clip(path.stem, samples, entry["text"], path)
