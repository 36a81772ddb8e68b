"""Which sessions get the next partials, and how many may run at once.

The pure half of the step scheduler: no tasks, no clock, no engine. Partials are pulled, so below capacity
every session gets them at its own floor interval, and above it all intervals stretch evenly, with no
formula for the stretch and nothing to oscillate.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

L = TypeVar("L")

_PERIOD_S: Final = 1.0
_SERVICE_TARGET_S: Final = 0.150
_FINAL_WAIT_TARGET_S: Final = 0.030
_DECREASE: Final = 0.75


@dataclass(frozen=True, slots=True)
class Waiting(Generic[L]):
    """A session that offers a partial. Times are seconds on one clock."""

    lane: L
    last_step: float
    """When it was last served."""
    due: float
    """It must not be served before."""
    offered: float
    """When it began to wait."""


def choose(waiting: Iterable[Waiting[L]], now: float, free: int) -> list[Waiting[L]]:
    """Return who is served now: of those that are due, the longest waiting, at most `free`."""
    if free <= 0:
        return []
    return sorted((w for w in waiting if w.due <= now), key=lambda w: w.last_step)[:free]


def next_due(waiting: Iterable[Waiting[L]], now: float) -> float | None:
    """Return when the next of those that are not due yet will be."""
    return min((w.due for w in waiting if w.due > now), default=None)


class PartialSlots:
    """How many partials may run at once, by additive increase and multiplicative decrease.

    Once a second: one slot more while the 95th percentile of a partial's service stays within 150 ms and
    no final waited for more than 30 ms, else a quarter fewer. A second without any step changes nothing.

    Args:
        cap: most slots, at least 1.
        now: seconds on the clock that later calls use.
    """

    def __init__(self, cap: int, now: float) -> None:
        self._cap = max(1, cap)
        self._slots = float(min(4, self._cap))
        self._services_s: list[float] = []
        self._longest_final_wait_s = 0.0
        self._adjusted = now

    @property
    def slots(self) -> int:
        """Partials that may run at once, 1 to `cap`."""
        return math.floor(self._slots)

    def partial_served(self, service_s: float, now: float) -> None:
        """Note how long the engine worked on a partial."""
        self._services_s.append(service_s)
        self._adjust(now)

    def final_waited(self, wait_s: float, now: float) -> None:
        """Note how long a final waited for its turn."""
        self._longest_final_wait_s = max(self._longest_final_wait_s, wait_s)
        self._adjust(now)

    def _adjust(self, now: float) -> None:
        if now - self._adjusted < _PERIOD_S:
            return
        slow = self._longest_final_wait_s > _FINAL_WAIT_TARGET_S or self._p95_s() > _SERVICE_TARGET_S
        self._slots = max(1.0, self._slots * _DECREASE) if slow else min(float(self._cap), self._slots + 1)
        self._services_s.clear()
        self._longest_final_wait_s = 0.0
        self._adjusted = now

    def _p95_s(self) -> float:
        ordered = sorted(self._services_s)
        return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else 0.0
