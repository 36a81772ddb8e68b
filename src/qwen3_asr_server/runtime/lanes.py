"""A session's way to the engine, and what is held for it there.

What passes through a lane (`Decode`, release, an offer; back a pull and an `Outcome`) is plain values, so that
gateways and the engine's owner can become separate processes with a socket in between; today they call each other
directly. Holds no policy: that is the step scheduler's, which makes and owns the lanes.
"""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.engines._base import EngineStream
from qwen3_asr_server.messages import Decode, Outcome
from qwen3_asr_server.session.recognition import Offer


class StepSource(Protocol):
    """A session, as the scheduler sees it. Called on the event loop; does not raise."""

    def offer(self) -> Offer | None:
        """Return the partial that is worth decoding, if any."""
        ...

    def pull(self, now: float) -> Decode | None:
        """Take the offered partial as a job."""
        ...

    def deliver(self, outcome: Outcome) -> None:
        """Take in the answer to a `Decode`."""
        ...


class LaneOwner(Protocol):
    """The scheduler, as a lane sees it."""

    def offered(self, lane: "Lane") -> None:
        """Look at the lane's offer anew."""
        ...

    def queue(self, lane: "Lane", decode: Decode) -> None:
        """Run a final or candidate when its turn comes."""
        ...

    def drop(self, piece: "Piece") -> None:
        """Give up what waits or runs for a piece and close its stream."""
        ...

    def forget(self, lane: "Lane") -> None:
        """Serve the lane no more."""
        ...


class Lane:
    """A session's way to the engine.

    Args:
        owner: the scheduler.
        source: the session.
        number: what the engine knows the session by.

    Attributes:
        source: the session.
        number: as given.
        pieces: those that were not released.
        last_turn: rises with each piece of a recording that begins, whatever its lane; the scheduler's.
    """

    def __init__(self, owner: "LaneOwner", source: StepSource, number: int) -> None:
        self._owner = owner
        self.source = source
        self.number = number
        self.pieces: dict[int, Piece] = {}
        self.last_turn = -1

    @property
    def is_being_heard(self) -> bool:
        """Whether a partial or candidate waits or runs."""
        steps = (piece.step for piece in self.pieces.values())
        return any(step is not None and step.decode.kind is not StepKind.FINAL for step in steps)

    def notify(self) -> None:
        """Say that the source's offer may have changed."""
        self._owner.offered(self)

    def submit(self, decode: Decode) -> None:
        """Queue a final or candidate; its outcome is delivered to the source."""
        self._owner.queue(self, decode)

    def release(self, piece: int) -> None:
        """Give up a piece: what waits or runs for it is dropped, its stream is closed."""
        held = self.pieces.pop(piece, None)
        if held is not None:
            self._owner.drop(held)

    def detach(self) -> None:
        """Leave: releases everything; nothing is delivered afterwards."""
        for piece in list(self.pieces):
            self.release(piece)
        self._owner.forget(self)


@dataclass(slots=True, eq=False)
class Piece:
    """What the scheduler holds for a piece that was not released yet."""

    stream: EngineStream | None = None
    step: "Step | None" = None


@dataclass(slots=True, eq=False)
class Step:
    """A decode that waits or runs."""

    lane: Lane
    piece: Piece
    decode: Decode
    queued_at: float
    began_at: float = 0.0
    task: asyncio.Task[Outcome] | None = None
    dropped: bool = False
    """The piece was released meanwhile."""

    @property
    def recorded(self) -> bool:
        """Whether it belongs to a recording."""
        return self.decode.options.recorded

    @property
    def label(self) -> str:
        """Its sort, for metrics."""
        return "recorded" if self.recorded else self.decode.kind.name.lower()
