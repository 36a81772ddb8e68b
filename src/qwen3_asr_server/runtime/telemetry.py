"""What is measured of a session: latencies, counts, and the line in the log when it ends.

    audio of speech start received ─▶ first partial     TTFP
    audio of speech end received ───▶ final             what a speaker waits, configured silence included
    endpoint decided ───────────────▶ final             what the server adds to that silence
    commit received ────────────────▶ final             Manual mode

Where audio came faster than it was spoken, a latency would tell the length of the file: it is left out, except
since the endpoint. Told by the live session of every packet and event; knows neither tasks nor protocols. Times
are seconds on the session's clock, places are samples of it.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from qwen3_asr_server import messages
from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.errors import EmptyCommit
from qwen3_asr_server.messages import Event
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.arrivals import Arrivals

_log = logging.getLogger(__name__)

_KEPT: Final = 1000
_MAX_COMMITS: Final = 256
"""More than the connection lets wait in a session."""


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


@dataclass(slots=True)
class _Item:
    """An utterance that has not ended yet. Times are None where nothing can be said of them."""

    speech_began: float | None = None
    speech_ended: float | None = None
    in_vad_mode: bool = False
    committed: bool = False
    waits_since: tuple[str, float | None] | None = None
    last_partial: float | None = None
    stable: str = ""
    """The stable prefix that was told last."""


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
        self._items: dict[int, _Item] = {}
        self._commits: deque[float | None] = deque(maxlen=_MAX_COMMITS)
        self._received = 0
        self._utterances = 0
        self._partials = 0
        self._rewrites = 0
        self._contradictions = 0

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
        self._arrivals.forget(end)

    def commit(self, now: float) -> None:
        """Note a client's commit in Manual mode."""
        self._commits.append(None if self._arrivals.pushed else now)

    def event(self, event: Event, now: float) -> None:
        """Note an event that goes to the client now."""
        match event:
            case messages.SpeechStarted(item, at):
                self._forget_uncommitted()
                self._items[item] = _Item(self._arrivals.of(at), in_vad_mode=True)
            case messages.SpeechStopped(item, at):
                self._item(item).speech_ended = self._arrivals.of(at)
            case messages.Committed(item):
                self._committed(self._item(item), now)
            case messages.Partial(item, stable):
                self._partial(self._item(item), stable, now)
            case messages.Final(item, text):
                self._final(self._item(item), text, now)
                self._forget_upto(item)
            case messages.UtteranceFailed(item):
                self._metrics.utterances.labels("failed").inc()
                self._forget_upto(item)
            case messages.Rejected(error=error):
                if isinstance(error, EmptyCommit) and self._commits:
                    self._commits.pop()
            case messages.Cleared():
                self._forget_uncommitted()
            case messages.Closing() | messages.Finished():
                pass

    def closed(self, reason: str, *, stale_outcomes: int, words_missed: int = 0) -> None:
        """Note the end of the session: metrics and one line in the log.

        Args:
            reason: one word.
            stale_outcomes: as the machine counted them.
            words_missed: likewise.
        """
        self._metrics.sessions.labels(reason).inc()
        self._metrics.stale_outcomes.inc(stale_outcomes)
        self._metrics.words_missed.inc(words_missed)
        totals: dict[str, object] = {
            "reason": reason,
            "audio_s": round(self._received / SAMPLE_RATE, 1),
            "utterances": self._utterances,
            "partials": self._partials,
            "stable_text_rewrites": self._rewrites,
            "finals_contradicting_text": self._contradictions,
        }
        _log.info("session closed", extra=totals | self._books[0].summary())

    def _committed(self, item: _Item, now: float) -> None:
        item.committed = True
        if self._commits and not item.in_vad_mode:
            item.waits_since = ("commit", self._commits.popleft())
        else:
            item.waits_since = ("endpoint", now)

    def _partial(self, item: _Item, stable: str, now: float) -> None:
        self._partials += 1
        if not stable.startswith(item.stable):
            self._rewrites += 1
            self._metrics.stable_text_rewrites.inc()
        item.stable = stable
        if item.last_partial is not None:
            self._metrics.partial_interval_seconds.observe(now - item.last_partial)
        elif item.speech_began is not None:
            first_s = now - item.speech_began
            self._metrics.first_partial_seconds.observe(first_s)
            for book in self._books:
                book.first_partials_s.append(first_s)
        item.last_partial = now

    def _final(self, item: _Item, text: str, now: float) -> None:
        self._utterances += 1
        self._metrics.utterances.labels("recognised").inc()
        if not text.startswith(item.stable):
            self._contradictions += 1
            self._metrics.finals_contradicting_text.inc()
        for since, at in (item.waits_since or ("commit", None), ("speech_end", item.speech_ended)):
            if at is None:
                continue
            self._metrics.final_latency_seconds.labels(since).observe(now - at)
            if since != "endpoint":
                for book in self._books:
                    book.finals_s.append(now - at)

    def _item(self, number: int) -> _Item:
        return self._items.setdefault(number, _Item())

    def _forget_uncommitted(self) -> None:
        """What was cleared: only one utterance is open at a time."""
        self._items = {number: item for number, item in self._items.items() if item.committed}

    def _forget_upto(self, last: int) -> None:
        """Utterances end in order."""
        self._items = {number: item for number, item in self._items.items() if number > last}


def quantiles(values: Iterable[float]) -> tuple[float, float]:
    """Return p50 and p95 of at least one value, by nearest rank."""
    ordered = sorted(values)
    p50, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
    return p50, p95
