"""placeholder: signatures only, the implementation is being written by the lead right now."""

from dataclasses import dataclass

from qwen3_asr_server.domain import SessionConfig
from qwen3_asr_server.messages import Command, Decode, Event, Job, Outcome
from qwen3_asr_server.session.options import SessionOptions


@dataclass(frozen=True, slots=True)
class Offer:
    """A partial that could be decoded now."""

    item: int
    piece: int
    unheard_s: float
    """Speech not heard by the engine yet, in seconds."""
    last_step: float
    """When the item's last step was pulled (or its speech began), on the session's clock."""
    due: float
    """Earliest `now` at which the machine allows the pull."""


class SessionMachine:
    """Turn commands and outcomes into events and jobs. Synchronous, no IO."""

    def __init__(self, config: SessionConfig, options: SessionOptions, now: float) -> None: ...
    def handle(self, command: Command, now: float) -> None:
        """Take in a command (never `AppendBytes`). Ignored after `Finish`, as the protocol wants."""

    def outcome(self, outcome: Outcome, now: float) -> None:
        """Take in a worker's answer; one for a piece or epoch that is gone is counted in `stale_outcomes`."""

    def tick(self, now: float) -> None:
        """Look at the clock: idle limit, finish deadline."""

    def touch(self, now: float) -> None:
        """Note that the client was heard from, whatever it sent."""

    def events_to_send(self) -> list[Event]:
        """Return the events since the last call."""
        return []

    def jobs_to_run(self) -> list[Job]:
        """Return the jobs since the last call: ScoreFrames, Release, and Decode of kind CANDIDATE or FINAL."""
        return []

    def offer(self) -> Offer | None:
        """Return the partial that is worth pulling, if any."""
        return None

    def pull(self, now: float) -> Decode | None:
        """Take the offered partial as a job; answered like any other by `outcome`."""
        return None

    def next_timeout(self) -> float | None:
        """Return when `tick` has something to do, on the clock of `now`."""
        return None

    @property
    def buffered_samples(self) -> int:
        """Audio received and not yet heard: what back-pressure is judged by."""
        return 0

    @property
    def done(self) -> bool:
        """True after `Finished`, `Closing` or `Disconnect`: nothing follows."""
        return False
