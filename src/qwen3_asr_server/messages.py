"""The hinge between protocols, sessions and workers.

    client ── Command ──▶ session ── Job ──────▶ VAD or engine
    client ◀── Event ──── session ◀── Outcome ── VAD or engine

A wire protocol turns messages into commands and events into messages; the session machine turns
commands and outcomes into events and jobs. Items (the wire's name for an utterance) and pieces (what an
engine decodes at one go, at most 28 s) are small integers that count up within a session.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen3_asr_server.domain import Hypothesis, Samples, SessionConfig, StepKind, StreamOptions, Word
from qwen3_asr_server.errors import AsrServerError

# Commands: client → session


@dataclass(frozen=True, slots=True)
class Configure:
    """Use `config` from the next item on. The protocol has already answered the client."""

    config: SessionConfig


@dataclass(frozen=True, slots=True)
class AppendBytes:
    """Encoded audio as it came. The driver decodes it and hands the machine an `AppendAudio`."""

    data: bytes
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class AppendAudio:
    """More audio on the session clock."""

    samples: Samples
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """Manual mode: everything since the last commit is one item."""

    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Clear:
    """Manual: forget uncommitted audio. VAD: forget the open utterance."""

    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """No more audio: finish what is open, then say so."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The client is gone; nothing can be delivered any more."""


Command = Configure | AppendBytes | AppendAudio | Commit | Clear | Finish | Disconnect

# Events: session → client


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """VAD mode: an utterance has begun."""

    item: int
    at: int
    """Sample of the session clock where the speech begins, lead-in not included."""


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """VAD mode: the utterance is over."""

    item: int
    at: int
    """Sample of the session clock where the speech ended, hangover not included."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The item's audio is complete; its final will follow."""

    item: int
    previous: int | None
    """The item committed before this one."""


@dataclass(frozen=True, slots=True)
class Partial:
    """The current hypothesis of an item; shown text is `stable + unstable`."""

    item: int
    stable: str
    """Stable prefix: only ever grows while the item is open."""
    unstable: str
    """Unstable tail: replaced whole by the next partial."""
    language: str


@dataclass(frozen=True, slots=True)
class Final:
    """The item's transcript. Exactly one of `Final` and `UtteranceFailed` ends every committed item."""

    item: int
    text: str
    language: str
    words: Sequence[Word] | None = None
    """On the session clock; None unless asked for and available."""
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class UtteranceFailed:
    """The item has no transcript; the session goes on."""

    item: int
    error: AsrServerError


@dataclass(frozen=True, slots=True)
class Cleared:
    """Answer to `Clear`."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A command could not be obeyed; the session goes on."""

    error: AsrServerError
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """Answer to `Finish`: every item has ended. Nothing follows."""

    transcript: str
    """All finals of the session, joined."""


@dataclass(frozen=True, slots=True)
class Closing:
    """The server ends the session. Nothing follows."""

    error: AsrServerError


Event = (
    SpeechStarted
    | SpeechStopped
    | Committed
    | Partial
    | Final
    | UtteranceFailed
    | Cleared
    | Rejected
    | Finished
    | Closing
)

# Jobs: session → worker


@dataclass(frozen=True, slots=True)
class ScoreFrames:
    """Ask the VAD for speech probabilities. At most one is outstanding in a session."""

    epoch: int
    """Echoed by the outcome. A new epoch starts from a fresh VAD state."""
    frames: npt.NDArray[np.float32]
    """float32 [n, 512], consecutive, n from 1 to 64."""


@dataclass(frozen=True, slots=True)
class Decode:
    """Ask the engine what was said in `[start, upto)`. At most one is outstanding for a piece."""

    item: int
    piece: int
    kind: StepKind
    start: int
    """First sample on the session clock."""
    upto: int
    """One past the last sample; `upto - start` is a multiple of `GRID_SAMPLES`. What lies past the
    end of the received audio is silence."""
    audio: Samples
    """float32 [upto - start]: the whole piece so far. Read-only."""
    options: StreamOptions


@dataclass(frozen=True, slots=True)
class Release:
    """The piece is over: close its stream and cancel what still runs for it."""

    piece: int


@dataclass(frozen=True, slots=True)
class Align:
    """Ask where the words of a text are. At most one answer is awaited for a piece: the one asked for last."""

    piece: int
    upto: int
    """Echoed by the outcome."""
    audio: Samples
    """float32 [n]: the piece from its start. Read-only."""
    text: str
    language: str | None
    """Wire code, None if unknown."""


Job = ScoreFrames | Decode | Release | Align

# Outcomes: worker → session


@dataclass(frozen=True, slots=True)
class Scored:
    """Answer to `ScoreFrames`."""

    epoch: int
    probabilities: npt.NDArray[np.float32]
    """float32 [n], in [0, 1], in the order of the frames."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Answer to `Decode`."""

    piece: int
    kind: StepKind
    upto: int
    hypothesis: Hypothesis


@dataclass(frozen=True, slots=True)
class Skipped:
    """The engine had no room for this partial or candidate. Audio is kept, nothing is lost."""

    piece: int
    kind: StepKind


@dataclass(frozen=True, slots=True)
class DecodeFailed:
    """The engine could not answer a `Decode`."""

    piece: int
    kind: StepKind
    error: AsrServerError


@dataclass(frozen=True, slots=True)
class Lost:
    """The engine died with this piece in it: its item has no transcript. Comes unasked, and ends a running `Decode`."""

    piece: int
    error: AsrServerError


@dataclass(frozen=True, slots=True)
class Aligned:
    """Answer to `Align`."""

    piece: int
    upto: int
    words: Sequence[Word]
    """Relative to the start of the piece; empty if they could not be placed."""


Outcome = Scored | Heard | Skipped | DecodeFailed | Lost | Aligned
