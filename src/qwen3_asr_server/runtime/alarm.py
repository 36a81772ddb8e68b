"""A timer that is moved often and rings seldom.

Deadlines of sessions move with every packet, nearly always to later. Setting a loop timer anew each time
would cost more than the packet; this one lets the old timer run out, and whoever it wakes looks again. Used by
the live session and the step scheduler. Knows nothing of what the time is for.
"""

import asyncio
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds on a monotonic clock."""


class Alarm:
    """Call back at a time, or earlier.

    Args:
        clock: seconds, monotonic; runs at the rate of the event loop's own clock.
        ring: called when the time has come. It may come early, so it looks at what is due, and sets the
            alarm for the rest.
    """

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float | None) -> None:
        """Ring at `at` at the latest; None asks for nothing. An earlier time that was set stays good."""
        if at is None or (self._timer is not None and self._at <= at):
            return
        self.cancel()
        self._at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - self._clock()), self._elapsed)

    def cancel(self) -> None:
        """Do not ring until set again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _elapsed(self) -> None:
        self._timer = None
        self._ring()
