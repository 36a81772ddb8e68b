"""Who may come in: a bound on sessions, or on other things of which there may be so many, in all and for each key.

A session holds a lease for as long as its connection lasts. Knows nothing of keys beyond an opaque id, nor of
what a session does. Called by the services.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from qwen3_asr_server.errors import Overloaded, ShuttingDown


class Refused(Overloaded):
    """Not admitted; `reason` is one word for metrics."""

    def __init__(self, message: str, *, reason: str, retry_after_s: float = 5.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason


class Admission:
    """Count sessions and refuse those over a limit.

    Args:
        max_sessions: sessions at once, at least 1.
        max_per_key: sessions at once for one key; 0 sets no such limit.
        what: what is counted, as clients are told.
    """

    def __init__(self, max_sessions: int, max_per_key: int = 0, *, what: str = "sessions") -> None:
        self._what = what
        self._max_sessions = max_sessions
        self._max_per_key = max_per_key
        self._by_key: Counter[str | None] = Counter()
        self._closed = False

    @property
    def in_use(self) -> int:
        """Sessions that hold a lease."""
        return self._by_key.total()

    @property
    def full(self) -> bool:
        """Whether nobody else is let in, whatever the key."""
        return self.in_use >= self._max_sessions

    def close(self) -> None:
        """Refuse everybody from now on; leases that are held stay good."""
        self._closed = True

    @contextmanager
    def admit(self, key_id: str | None = None) -> Iterator[None]:
        """Hold a lease for one session.

        Raises:
            Refused: over a limit.
            ShuttingDown: after `close`.
        """
        if self._closed:
            raise ShuttingDown("The server is shutting down.")
        if self.full:
            raise Refused(f"Too many {self._what}; try again later.", reason="sessions")
        if key_id is not None and self._max_per_key and self._by_key[key_id] >= self._max_per_key:
            raise Refused(f"Too many {self._what} for this key.", reason="key")
        self._by_key[key_id] += 1
        try:
            yield
        finally:
            self._by_key[key_id] -= 1
            if not self._by_key[key_id]:
                del self._by_key[key_id]
