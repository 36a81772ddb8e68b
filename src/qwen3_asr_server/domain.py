"""Value types that every layer shares.

Time inside the server is an integer sample index at 16 kHz. Seconds and milliseconds exist only at
the wire, in settings and in metrics. Nothing here knows sockets, protocols, clocks or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
"""Audio: float32 [n], mono, 16 kHz, in [-1, 1]."""

SAMPLE_RATE: Final = 16_000
"""Hz. The rate of every sample index in the server."""

FRAME_SAMPLES: Final = 512
"""32 ms: the frame that a voice activity detector scores."""

GRID_SAMPLES: Final = 1_280
"""80 ms: every decode ends on this grid, counted from the start of its piece.

The Qwen3-ASR encoder pads partial chunks to the longest of its batch; at multiples of eight mel frames
(80 ms) its output does not depend on who shares the batch. Engines without that trait lose nothing by it.
"""


def samples_of_ms(milliseconds: float) -> int:
    """Return the number of 16 kHz samples in a time span, rounded to the nearest."""
    return round(milliseconds * SAMPLE_RATE / 1000)


def ms_of_samples(samples: int) -> int:
    """Return a sample count as whole milliseconds, rounded down."""
    return samples * 1000 // SAMPLE_RATE


class StepKind(IntEnum):
    """Why a stretch of audio is decoded. A lower value is more urgent."""

    FINAL = 0
    """Nothing follows in this piece; the answer is what the client keeps."""
    CANDIDATE = 1
    """The speaker paused: the final's audio, decoded before the silence is long enough to be sure."""
    PARTIAL = 2
    """The speaker goes on; the answer is shown and will be replaced."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its place in the audio."""

    text: str
    start: int
    """First sample, counted from the start of what was decoded."""
    end: int
    """One past the last sample; never before `start`."""
    confidence: float | None = None
    """Probability in [0, 1], where the engine has one."""

    def shifted(self, samples: int) -> "Word":
        """Return the same word on a clock that began `samples` earlier."""
        return Word(self.text, self.start + samples, self.end + samples, self.confidence)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What an engine believes was said in the audio of one step, from the start of the piece."""

    text: str
    """Without leading or trailing white space; empty for silence."""
    language: str | None = None
    """Wire code (`en`, `zh`, `yue`, …) or None while unknown."""
    words: Sequence[Word] = ()
    """Words with times relative to the start of the piece; empty where the engine has none."""
    confidence: float | None = None
    """Mean token probability in [0, 1], where the engine has one."""
    final: bool = False
    """The engine would give the same text to a FINAL step over the same audio."""


class AudioEncoding(Enum):
    """How a client packs its audio. PCM is mono unless a WAV header says otherwise; the others say it themselves."""

    PCM = "pcm"
    """Signed 16-bit little-endian; a WAV header at the start is understood."""
    OPUS = "opus"
    """An Ogg stream when it starts with `OggS`, else one raw packet an append."""
    MP3 = "mp3"
    """Frames of MPEG layer III one behind the other, tags among them or not."""
    AAC = "aac"
    """ADTS frames one behind the other; an MP4 file (.m4a) holds none."""
    AMR = "amr"
    """A file of narrow-band or wide-band AMR, as its first bytes say."""
    SPEEX = "speex"
    """In Ogg only."""


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """The format of a client's audio."""

    encoding: AudioEncoding = AudioEncoding.PCM
    sample_rate: int = SAMPLE_RATE
    """Hz, 8000 to 48000. Of plain PCM; everything else says it itself."""


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """Server-side endpointing, as a session asks for it."""

    threshold: float = 0.5
    """Speech probability in (0, 1) above which a frame counts as speech."""
    silence_ms: int = 800
    """Silence that ends an utterance, 200 to 6000 ms."""
    prefix_padding_ms: int = 300
    """Audio kept before the speech that opened an utterance (lead-in), 0 to 2000 ms."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a client has asked of its session, free of any wire format."""

    audio: AudioFormat = AudioFormat()
    language: str | None = None
    """Forced language as wire code; None detects it."""
    context: str = ""
    """Free text or hotwords that bias recognition."""
    turn_detection: TurnDetection | None = TurnDetection()
    """None is Manual mode: the client commits."""
    words: bool = False
    """Send word times with finals, where the engine has them."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What an engine needs to know before it decodes a piece."""

    language: str | None = None
    """Forced; None detects it."""
    context: str = ""
    expected_language: str | None = None
    """What the session was in lately: a hint for speech that is too short to tell. Wire code; of no effect where a
    language is forced, or the engine does not know the expected one."""
    session: int | None = None
    """Which session speaks, by a number of this process: an engine with several servers keeps the pieces of a session
    with one, where their context is cached. None: they go anywhere."""
    recorded: bool = False
    """A piece of a recording, for which nobody waits at a microphone: it makes way for those of live sessions."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and can do; said in the log, `/health`, `GET /` and on the demo page."""

    name: str
    """The value of `ENGINE` that selects it."""
    model: str
    description: str
    """One sentence for users: what it is good for and what not."""
    languages: frozenset[str]
    """Wire codes that may be forced."""
    default_language: str
    """Wire code reported when nothing was detected."""
    production: bool
    """False for engines that exist to show the server working."""
    word_times: bool = False
    context: bool = False
    """Whether `StreamOptions.context` has an effect."""
    max_streams: int | None = None
    """Pieces that can be decoded incrementally at once; None means no fixed number."""
