"""Numbers that steer endpointing, pieces and sessions, as data with their reasons."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class PieceRule:
    """Cut a piece of at least `min_age_s` at a pause of at least `min_pause_ms`."""

    min_age_s: float
    min_pause_ms: int


PIECE_RULES: Final = (
    PieceRule(min_age_s=0, min_pause_ms=2000),
    PieceRule(min_age_s=12, min_pause_ms=300),
    PieceRule(min_age_s=20, min_pause_ms=120),
)
"""The older a piece, the shorter the pause that ends it. Two seconds of silence always do: no engine
should be fed them, and no context carries over them. Pieces without any pause end at `max_piece_s`."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Limits and tuning of a session; defaults are those of the settings."""

    default_language: str = "en"
    """Reported while nothing was detected and none was asked for."""
    max_utterance_s: float = 60.0
    """VAD mode: forced cut at the quietest place of the last `quiet_search_s`."""
    manual_max_s: float = 3600.0
    """Manual mode: longest item."""
    idle_timeout_s: float = 600.0
    """Close after this long without a message from the client."""
    finish_timeout_s: float = 30.0
    """After `Finish`: longest wait without progress."""
    piece_rules: tuple[PieceRule, ...] = PIECE_RULES
    max_piece_s: float = 28.0
    """Forced cut of a piece: four 8 s encoder windows would be 32 s, and the model saw 30."""
    quiet_search_s: float = 6.0
    """How far back a forced cut looks for the quietest 80 ms."""
    overlap_s: float = 0.8
    """After a forced cut the next piece hears this much again; the texts are merged on what they share."""
    min_speech_ms: int = 64
    """Speech that opens an utterance: two frames. One frame is a click; 好 and "no" last longer."""
    hysteresis: float = 0.15
    """Inside speech a frame counts until its probability is this far below the threshold."""
    pause_ms: int = 200
    """Silence after which the final is decoded as a candidate (half of `silence_ms` where that is less)."""
    trailing_ms: int = 240
    """Audio kept after the last speech frame, whatever the silence setting. Review of 120 clips: 113 exact
    with 240 ms of trailing silence, 112 with 800, 105 with 2000."""
    partial_floor_s: float = 0.4
    """Shortest interval between two partials of an item."""
    partial_min_new_s: float = 0.24
    """New speech that makes another partial worth its cost."""
    stable_age_s: float = 1.5
    """Text is confirmed when two hypotheses agree on it and its audio is older than this."""
    language_evidence_s: float = 1.5
    """Shortest piece, with its lead-in, whose language counts for what a session's language is."""
    align_words: bool = False
    """Ask for the places of words that the engine does not give, for clients who want them."""
    words_wait_s: float = 0.3
    """How long a final that is ready waits for them."""
    max_finals_in_flight: int = 4
    """Finals and candidates of one session that run at once; the rest wait in the session."""
    transcript_chars: int = 1_000_000
    """What a session keeps of its finals for its end: some twenty hours of speech, as sessions may last for days."""
    score_frames: int = 64
    """Frames in one VAD job: 2 s of audio, so that a pushed file shares the detector fairly."""
