"""What a session could report, move by move: utterances begin and end in order, at most one of them is being spoken.

For properties of protocols, where a real session would only say what a real engine says.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from qwen3_asr_server.domain import Word
from qwen3_asr_server.errors import EngineError, InvalidAudio
from qwen3_asr_server.messages import (
    Committed,
    Event,
    Final,
    Finished,
    Partial,
    Rejected,
    SpeechStarted,
    SpeechStopped,
    UtteranceFailed,
)

Kind = Literal["start", "partial", "stop", "final", "fail", "reject"]


@dataclass(frozen=True, slots=True)
class Move:
    """What is to happen next, if it can."""

    kind: Kind
    samples: int
    """How long after the move before."""
    text: str


@dataclass(slots=True)
class Utterances:
    """A session that has just begun."""

    clock: int = 0
    begun: int = 0
    speaking: bool = False
    pending: list[int] = field(default_factory=list)
    """Those without a text, oldest first."""

    def after(self, move: Move) -> list[Event]:
        """Return what the session reports; nothing if this cannot happen now."""
        self.clock += move.samples
        over = len(self.pending) > self.speaking
        match move.kind:
            case "start" if not self.speaking:
                self.begun += 1
                self.speaking = True
                self.pending.append(self.begun)
                return [SpeechStarted(self.begun, self.clock)]
            case "stop" if self.speaking:
                self.speaking = False
                return [SpeechStopped(self.begun, self.clock), Committed(self.begun, None)]
            case "partial" if self.pending:
                half = len(move.text) // 2
                item = self.pending[move.samples % len(self.pending)]
                return [Partial(item, move.text[:half], move.text[half:], "en")]
            case "final" if over:
                words = [Word(word, 0, self.clock) for word in move.text.split()]
                return [Final(self.pending.pop(0), move.text, "en", words)]
            case "fail" if over:
                return [UtteranceFailed(self.pending.pop(0), EngineError("It failed."))]
            case "reject":
                return [Rejected(InvalidAudio("It is no audio."))]
        return []

    def finish(self) -> Iterator[Event]:
        """Yield how the session ends."""
        yield from self.after(Move("stop", 0, ""))
        while self.pending:
            yield from self.after(Move("final", 0, "bye"))
        yield Finished("")
