"""All Prometheus metrics of the server, declared in one place.

A `Metrics` owns its registry, so two servers in one process (tests) do not share counters. Names carry
their unit and every label takes few values. Nothing is derived here and nothing is known of sessions or
engines: `runtime` and `frontends` observe, `/metrics` renders.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_S: Final = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_SERVICE_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_VAD_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_LAG_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_LOAD_S: Final = (0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 1200.0)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._declare_sessions()
        self._declare_latencies()
        self._declare_workers()
        self._declare_engine()
        self._declare_text()

    def count_engine(self, read: Callable[[], Mapping[str, int | float]]) -> None:
        """Show what the engine counts as `asr_engine_<name>_total`, and its levels without `_total`.

        Args:
            read: gives both by name; an `int` is a counter, a `float` a level.
        """
        self.registry.register(_EngineCounters(read))

    def render(self) -> bytes:
        """Return everything in Prometheus' text format, `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _declare_sessions(self) -> None:
        self.sessions_open = self._gauge("asr_sessions_open", "Realtime sessions that are open")
        self.sessions = self._counter("asr_sessions_total", "Realtime sessions that ended", "reason")
        self.sessions_refused = self._counter("asr_sessions_refused_total", "Connections not admitted", "reason")
        self.recordings_open = self._gauge("asr_recordings_open", "Recordings that are transcribed now")
        self.recordings = self._counter("asr_recordings_total", "Recordings that ended", "result")
        self.recorded_seconds = self._counter("asr_recorded_seconds_total", "Audio of recordings that was transcribed")
        self.job_files_waiting = self._gauge("asr_job_files_waiting", "Files of jobs that wait for their turn")
        self.job_files_running = self._gauge("asr_job_files_running", "Files of jobs that are worked on now")
        self.job_files = self._counter("asr_job_files_total", "Files of jobs that came to an end", "result")
        self.audio_received_seconds = self._counter("asr_audio_received_seconds_total", "Audio received")
        self.buffered_audio_seconds = self._gauge(
            "asr_buffered_audio_seconds", "Audio received and not heard yet, all sessions"
        )
        self.utterances = self._counter("asr_utterances_total", "Utterances that ended", "result")
        self.errors = self._counter("asr_errors_total", "Errors told to clients", "code")

    def _declare_latencies(self) -> None:
        self.first_partial_seconds = self._histogram(
            "asr_first_partial_seconds", "Speech start received to first partial (TTFP)", _LATENCY_S
        )
        self.partial_interval_seconds = self._histogram(
            "asr_partial_interval_seconds", "Between two partials of an utterance", _LATENCY_S
        )
        self.final_latency_seconds = self._histogram(
            "asr_final_latency_seconds",
            "To the final: since the end of speech was received, since the endpoint, or since the commit",
            _LATENCY_S,
            "since",
        )

    def _declare_workers(self) -> None:
        self.vad_batch_rows = self._histogram("asr_vad_batch_rows", "Sessions scored in one VAD call", _ROWS)
        self.vad_batch_seconds = self._histogram("asr_vad_batch_seconds", "One VAD call", _VAD_S)
        self.vad_lag_seconds = self._histogram("asr_vad_lag_seconds", "Packet received to its frames scored", _LAG_S)
        self.decode_seconds = self._histogram("asr_decode_seconds", "One decode step", _SERVICE_S, "kind")
        self.decode_queue_seconds = self._histogram(
            "asr_decode_queue_seconds", "A decode's wait for its turn", _SERVICE_S, "kind"
        )
        self.partial_slots = self._gauge("asr_partial_slots", "Partials allowed at once")
        self.partials_skipped = self._counter("asr_partials_skipped_total", "Partials the engine had no room for")
        self.align_seconds = self._histogram("asr_align_seconds", "Placing the words of a final", _SERVICE_S)
        self.alignments = self._counter("asr_alignments_total", "Texts whose words were to be placed", "result")
        self.words_missed = self._counter(
            "asr_words_missed_total", "Finals told without the word times that were asked for"
        )
        self.stale_outcomes = self._counter("asr_stale_outcomes_total", "Worker answers that nobody waited for")

    def _declare_engine(self) -> None:
        self.engine_up = self._gauge("asr_engine_up", "1 while the engine is loaded and lives")
        self.engine_deaths = self._counter("asr_engine_deaths_total", "Engines that died and are started again")
        self.engine_load_seconds = self._histogram("asr_engine_load_seconds", "Start of an engine that worked", _LOAD_S)

    def _declare_text(self) -> None:
        self.stable_text_rewrites = self._counter(
            "asr_stable_text_rewrites_total", "Partials whose stable text does not extend the last one"
        )
        self.finals_contradicting_text = self._counter(
            "asr_finals_contradicting_text_total", "Finals that do not begin with the last stable text"
        )

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(name, documentation, registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, documentation, labels, buckets=buckets, registry=self.registry)


class _EngineCounters(Collector):
    """Counters that only the engine knows; they begin anew when it is loaded again."""

    def __init__(self, read: Callable[[], Mapping[str, int | float]]) -> None:
        self._read = read

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Say nothing beforehand: which there are is known when an engine runs."""
        return iter(())

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield one family for each."""
        for name, value in self._read().items():
            said = f"Engine: {name.replace('_', ' ')}"
            if isinstance(value, float):
                yield GaugeMetricFamily(f"asr_engine_{name}", said, value)
            else:
                yield CounterMetricFamily(f"asr_engine_{name}", f"{said}, since it was loaded", value)
