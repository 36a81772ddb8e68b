"""How long to wait before something that died is started again. Pure: no tasks, no clock; used by the pool."""

from typing import Final

_FIRST_S: Final = 1.0
_LONGEST_S: Final = 60.0
_SETTLED_S: Final = 60.0
"""What has run for this long and dies then is not the same failure once more."""


class Backoff:
    """Wait 0, 1, 2, 4 … 60 s before the attempts that follow one another.

    Attributes:
        attempt: number of the attempt that runs or comes next, from 1; 0 while nothing has failed.
    """

    def __init__(self) -> None:
        self.attempt = 0
        self._runs_since: float | None = None

    def runs(self, now: float) -> None:
        """Note that an attempt has succeeded. Times are seconds on one clock."""
        self._runs_since = now

    def failed(self, now: float) -> float:
        """Note a failed attempt, or the death of what ran; return the seconds to wait before the next attempt."""
        if self._runs_since is not None and now - self._runs_since >= _SETTLED_S:
            self.attempt = 0
        self._runs_since = None
        self.attempt += 1
        return 0.0 if self.attempt == 1 else min(_LONGEST_S, _FIRST_S * 2 ** min(self.attempt - 2, 10))

    def forget(self) -> None:
        """Begin anew."""
        self.attempt, self._runs_since = 0, None
