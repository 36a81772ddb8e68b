"""When the audio of a session came, and whether it came no faster than it was spoken.

Latencies are counted from the arrival of audio. Of a file that is pushed at once they would only say how long
it is, so what came ahead of real time has no arrival. Knows no events and no utterances; `telemetry` is its only
caller. Places are samples of the session's clock, times are seconds.
"""

from bisect import bisect_right
from collections import deque
from operator import itemgetter
from typing import Final

from qwen3_asr_server.domain import SAMPLE_RATE

_ENTRY_SAMPLES: Final = SAMPLE_RATE // 100
_KEPT_SAMPLES: Final = 30 * SAMPLE_RATE
"""Kept behind what the VAD has judged; the end of an utterance lies at most some 12 s back."""

_PUSHED_S: Final = 5.0
_MOST_BEHIND_S: Final = 10.0


class Arrivals:
    """When each sample of the session came.

    What is more than 5 s ahead of real time counts as pushed. A client that stood still may first catch up what it
    owes, up to 10 s: its network may have stalled.
    """

    def __init__(self) -> None:
        self._packets: deque[tuple[int, float | None]] = deque()
        """First sample and time of arrival; tiny packets share an entry."""
        self._received = 0
        self._ahead_s = 0.0
        self._last: float | None = None

    @property
    def pushed(self) -> bool:
        """Whether the latest audio came faster than it was spoken."""
        return self._ahead_s > _PUSHED_S

    def add(self, end: int, now: float) -> None:
        """Note that all samples before `end` have come."""
        elapsed_s = 0.0 if self._last is None else now - self._last
        self._ahead_s = max(-_MOST_BEHIND_S, self._ahead_s - elapsed_s) + (end - self._received) / SAMPLE_RATE
        arrived = None if self.pushed else now
        if self._packets and self._received - self._packets[-1][0] < _ENTRY_SAMPLES:
            self._packets[-1] = (self._packets[-1][0], arrived)
        else:
            self._packets.append((self._received, arrived))
        self._received, self._last = end, now

    def forget(self, before: int) -> None:
        """Note that nobody asks any more for what lies further back than half a minute before sample `before`."""
        while len(self._packets) > 1 and self._packets[1][0] <= before - _KEPT_SAMPLES:
            self._packets.popleft()

    def of(self, sample: int) -> float | None:
        """Return when a sample came; None if it has not, was pushed, or is forgotten."""
        after = bisect_right(self._packets, sample, key=itemgetter(0))
        return self._packets[after - 1][1] if after and sample < self._received else None

    def __len__(self) -> int:
        return len(self._packets)
