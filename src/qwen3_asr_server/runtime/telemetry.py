"""What is measured of a session: latencies, counts, and the line in the log when it ends.

    audio of speech start received ─▶ first partial     TTFP
    audio of speech end received ───▶ final             what a speaker waits, configured silence included
    endpoint decided ───────────────▶ final             what the server adds to that silence
    commit received ────────────────▶ final             Manual mode

Told by the live session of every packet and event; knows neither tasks nor protocols. Times are seconds on the
session's clock, places are samples of it.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from qwen3_asr_server import messages
from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.errors import AsrServerError, EmptyCommit
from qwen3_asr_server.messages import Event
from qwen3_asr_server.metrics import Metrics

_log = logging.getLogger(__name__)

_REMEMBERED_SAMPLES: Final = 90 * SAMPLE_RATE
"""Back-pressure lets at most 60 s wait; an utterance's end lies at most 6 s further back."""

_KEPT: Final = 1000


class Arrivals:
    """When each sample of the session came."""

    def __init__(self) -> None:
        self._packets: deque[tuple[int, float]] = deque()

    def add(self, end: int, now: float) -> None:
        """Note that all samples before `end` have come."""
        self._packets.append((end, now))
        while self._packets[0][0] < end - _REMEMBERED_SAMPLES:
            self._packets.popleft()

    def of(self, sample: int) -> float | None:
        """Return when a sample came: None if it has not; the oldest time remembered if it is long ago."""
        found = None
        for end, arrived in reversed(self._packets):
            if end <= sample:
                break
            found = arrived
        return found


@dataclass(slots=True)
class Latencies:
    """The latest latencies, of one session or of the server, in seconds."""

    first_partials_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    finals_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """Since the end of speech was received, or since the commit."""

    def summary(self) -> dict[str, int]:
        """Return the quantiles of what was measured, in whole milliseconds."""
        found: dict[str, int] = {}
        for name, measured_s in (("first_partial_ms", self.first_partials_s), ("final_ms", self.finals_s)):
            if measured_s:
                p50, p95 = quantiles(measured_s)
                found |= {f"{name}_p50": round(p50 * 1000), f"{name}_p95": round(p95 * 1000)}
        return found


class Telemetry:
    """The measurements of one session.

    Args:
        metrics: of the server.
        recent: latencies of the whole server.
    """

    def __init__(self, metrics: Metrics, recent: Latencies) -> None:
        self._metrics = metrics
        self._books = (Latencies(), recent)
        self._arrivals = Arrivals()
        self._speech_began: dict[int, float] = {}
        self._speech_ended: dict[int, float] = {}
        self._ended: dict[int, tuple[str, float]] = {}
        self._last_partial: dict[int, float] = {}
        self._commits: deque[float] = deque()
        self._received = 0
        self._utterances = 0
        self._partials = 0

    def received(self, end: int, now: float) -> None:
        """Note that all samples before `end` have come."""
        if end > self._received:
            self._arrivals.add(end, now)
            self._metrics.audio_received_seconds.inc((end - self._received) / SAMPLE_RATE)
            self._received = end

    def scored(self, end: int, now: float) -> None:
        """Note that the VAD has judged all samples before `end`."""
        arrived = self._arrivals.of(end - 1)
        if arrived is not None:
            self._metrics.vad_lag_seconds.observe(now - arrived)

    def commit(self, now: float) -> None:
        """Note a client's commit in Manual mode."""
        self._commits.append(now)

    def event(self, event: Event, now: float) -> None:
        """Note an event that goes to the client now."""
        match event:
            case messages.SpeechStarted(item, at):
                self._speech_began[item] = self._arrived(at, now)
            case messages.SpeechStopped(item, at):
                self._speech_ended[item] = self._arrived(at, now)
            case messages.Committed(item):
                by_client = self._commits and item not in self._speech_ended
                self._ended[item] = ("commit", self._commits.popleft()) if by_client else ("endpoint", now)
            case messages.Partial(item):
                self._partial(item, now)
            case messages.Final(item):
                self._final(item, now)
            case messages.UtteranceFailed(item, error):
                self._error(error)
                self._metrics.utterances.labels("failed").inc()
                self._forget(item)
            case messages.Rejected(error=error) | messages.Closing(error=error):
                self._error(error)
            case messages.Cleared() | messages.Finished():
                pass

    def closed(self, reason: str, *, stale_outcomes: int, rewrites: int, contradictions: int) -> None:
        """Note the end of the session: metrics and one line in the log.

        Args:
            reason: one word.
            stale_outcomes: as the machine counted them, like the other two.
            rewrites: stable prefixes that changed.
            contradictions: finals that do not begin with the stable prefix.
        """
        self._metrics.sessions.labels(reason).inc()
        self._metrics.stale_outcomes.inc(stale_outcomes)
        self._metrics.stable_text_rewrites.inc(rewrites)
        self._metrics.finals_contradicting_text.inc(contradictions)
        totals: dict[str, object] = {
            "reason": reason,
            "audio_s": round(self._received / SAMPLE_RATE, 1),
            "utterances": self._utterances,
            "partials": self._partials,
        }
        _log.info("session closed", extra=totals | self._books[0].summary())

    def _partial(self, item: int, now: float) -> None:
        self._partials += 1
        if item in self._last_partial:
            self._metrics.partial_interval_seconds.observe(now - self._last_partial[item])
        elif item in self._speech_began:
            first_s = now - self._speech_began[item]
            self._metrics.first_partial_seconds.observe(first_s)
            for book in self._books:
                book.first_partials_s.append(first_s)
        self._last_partial[item] = now

    def _final(self, item: int, now: float) -> None:
        self._utterances += 1
        self._metrics.utterances.labels("recognised").inc()
        measured = [self._ended[item]] if item in self._ended else []
        if item in self._speech_ended:
            measured.append(("speech_end", self._speech_ended[item]))
        for since, at in measured:
            self._metrics.final_latency_seconds.labels(since).observe(now - at)
            if since != "endpoint":
                for book in self._books:
                    book.finals_s.append(now - at)
        self._forget(item)

    def _error(self, error: AsrServerError) -> None:
        self._metrics.errors.labels(type(error).__name__).inc()
        if isinstance(error, EmptyCommit) and self._commits:
            self._commits.pop()

    def _forget(self, item: int) -> None:
        for times in (self._speech_began, self._speech_ended, self._ended, self._last_partial):
            times.pop(item, None)

    def _arrived(self, sample: int, now: float) -> float:
        arrived = self._arrivals.of(sample)
        return now if arrived is None else arrived


def quantiles(values: Iterable[float]) -> tuple[float, float]:
    """Return p50 and p95 of at least one value, by nearest rank."""
    ordered = sorted(values)
    p50, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
    return p50, p95
