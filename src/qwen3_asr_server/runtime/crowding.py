"""Whether the engine keeps up: what admission goes by.

What counts is what speakers get: the time from one heard partial to the next, and how long finals wait for
their turn. A partial that the engine skipped was not heard, so waiting goes on. No tasks, no clock, no
engine; told and asked by the step scheduler alone.
"""

import statistics
from collections.abc import Hashable, Iterable
from typing import Final, Generic, TypeVar

L = TypeVar("L", bound=Hashable)

_REMEMBERED_S: Final = 5.0
_FEWEST: Final = 2
"""However slow the engine is, one speaker alone is no crowd: it would serve nobody to turn the second away."""


class Crowding(Generic[L]):
    """Tell whether most speakers wait for longer than promised. Times are seconds on one clock.

    Args:
        limit_s: longest interval between two partials of a speaker, and longest wait of a final.
        now: no wait counts from before this.
    """

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s = limit_s
        self._began = now
        self._waiting: dict[L, float] = {}
        self._heard: dict[L, float] = {}
        self._intervals: dict[L, tuple[float, float]] = {}
        self._final_waits: dict[L, tuple[float, float]] = {}

    def restart(self, now: float) -> None:
        """Let no wait count from before now: the engine was not there."""
        self._began = now
        self._waiting.clear()

    def wants(self, lane: L, since: float) -> None:
        """Note that a speaker could be given a partial, and spoke or was heard last at `since`."""
        if lane not in self._waiting:
            self._waiting[lane] = max(since, self._heard.get(lane, since), self._began)

    def heard(self, lane: L, now: float) -> None:
        """Note that a speaker's words so far were heard."""
        since = self._waiting.pop(lane, None)
        if since is not None:
            self._intervals[lane] = (now, now - since)
        self._heard[lane] = now

    def rests(self, lane: L) -> None:
        """Note that there is nothing to be heard: the speaker pauses."""
        self._waiting.pop(lane, None)

    def final_waited(self, lane: L, wait_s: float, now: float) -> None:
        """Note how long a final waited for its turn."""
        self._final_waits[lane] = (now, wait_s)

    def forget(self, lane: L) -> None:
        """Note that a speaker has left."""
        for known in (self._waiting, self._heard, self._intervals, self._final_waits):
            known.pop(lane, None)

    def crowded(self, now: float, finals: Iterable[tuple[L, float]] = ()) -> bool:
        """Tell whether more sessions would make it worse for all.

        Args:
            now: what is more than 5 s ago does not count.
            finals: lane and begin of each wait that goes on.
        """
        partials = _recent(self._intervals, now)
        for lane, since in self._waiting.items():
            partials[lane] = max(partials.get(lane, 0.0), now - since)
        waits = _recent(self._final_waits, now)
        for lane, since in finals:
            waits[lane] = max(waits.get(lane, 0.0), now - since)
        return self._too_long(partials) or self._too_long(waits)

    def _too_long(self, waits_s: dict[L, float]) -> bool:
        return len(waits_s) >= _FEWEST and statistics.median_low(waits_s.values()) > self._limit_s


def _recent(noted: dict[L, tuple[float, float]], now: float) -> dict[L, float]:
    return {lane: seconds for lane, (at, seconds) in noted.items() if at >= now - _REMEMBERED_S}
