"""What an answer is said to have used, for clients that want to see tokens.

Audio counts 25 tokens a second, as the vendor counts it. Text counts one token a word, or a character of a script
without spaces: engines do not tell how many tokens their models made of it, so no such figure is invented.
"""

import math
from dataclasses import dataclass
from typing import Final

from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.text.transcript import Transcript
from qwen3_asr_server.text.units import split_units

AUDIO_TOKENS_PER_S: Final = 25


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one answer has used."""

    audio: int
    """Those that have begun included."""
    context: int
    """Of what the client said beforehand."""
    written: int
    """Of the transcript."""

    @property
    def taken(self) -> int:
        """What went in."""
        return self.audio + self.context

    @property
    def total(self) -> int:
        """What went in and came out."""
        return self.taken + self.written


def tokens_of(transcript: Transcript, context: str) -> Tokens:
    """Return what a transcript has used, with what was said beforehand."""
    audio = math.ceil(transcript.duration * AUDIO_TOKENS_PER_S / SAMPLE_RATE)
    return Tokens(audio, text_tokens(context), text_tokens(transcript.text))


def text_tokens(text: str) -> int:
    """Return the tokens of a text."""
    return len(split_units(text))


def whole_seconds(samples: int) -> int:
    """Return the seconds of audio at 16 kHz, the last begun one included."""
    return math.ceil(samples / SAMPLE_RATE)
