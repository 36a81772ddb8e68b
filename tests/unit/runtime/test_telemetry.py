import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.errors import EmptyCommit
from qwen3_asr_server.messages import Committed, Final, Partial, Rejected, SpeechStarted, SpeechStopped
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.telemetry import Arrivals, Latencies, Telemetry, quantiles

S = 16_000


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=40), st.integers(0, 200_000))
def test_arrivals_are_those_of_the_packet(sizes, sample):
    arrivals, ends = Arrivals(), []
    for number, size in enumerate(sizes):
        ends.append((ends[-1] if ends else 0) + size)
        arrivals.add(ends[-1], float(number))
    assert arrivals.of(sample) == next((float(n) for n, end in enumerate(ends) if sample < end), None)


def test_arrivals_forget_what_is_long_ago():
    arrivals = Arrivals()
    for second in range(1, 3600):
        arrivals.add(second * S, float(second))
    assert len(arrivals._packets) <= 92
    assert arrivals.of(0) == 3509.0


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_vad_mode():
    metrics, recent = Metrics(), Latencies()
    telemetry = Telemetry(metrics, recent)
    for second in range(1, 11):
        telemetry.received(second * S, now=100.0 + second)  # each second of audio comes when it is over
    telemetry.event(SpeechStarted(0, at=round(1.5 * S)), now=102.5)
    telemetry.event(Partial(0, "", "a", "en"), now=103.0)
    telemetry.event(Partial(0, "", "b", "en"), now=103.75)
    telemetry.event(SpeechStopped(0, at=round(5.5 * S)), now=107.0)
    telemetry.event(Committed(0, None), now=107.0)
    telemetry.event(Final(0, "b", "en"), now=107.25)
    assert value(metrics, "asr_first_partial_seconds_sum") == pytest.approx(1.0)
    assert value(metrics, "asr_partial_interval_seconds_sum") == pytest.approx(0.75)
    assert value(metrics, "asr_final_latency_seconds_sum", since="endpoint") == pytest.approx(0.25)
    assert value(metrics, "asr_final_latency_seconds_sum", since="speech_end") == pytest.approx(1.25)
    assert value(metrics, "asr_final_latency_seconds_count", since="commit") is None
    assert recent.summary() == {
        "first_partial_ms_p50": 1000,
        "first_partial_ms_p95": 1000,
        "final_ms_p50": 1250,
        "final_ms_p95": 1250,
    }


def test_commits_are_answered_in_order_and_refused_ones_by_nothing():
    metrics = Metrics()
    telemetry = Telemetry(metrics, Latencies())
    telemetry.commit(now=10.0)
    telemetry.commit(now=11.0)
    telemetry.event(Rejected(EmptyCommit("nothing")), now=11.0)
    telemetry.commit(now=12.0)
    telemetry.event(Committed(0, None), now=12.5)
    telemetry.event(Committed(1, 0), now=12.5)
    telemetry.event(Final(0, "a", "en"), now=13.0)
    telemetry.event(Final(1, "b", "en"), now=13.0)
    assert value(metrics, "asr_final_latency_seconds_sum", since="commit") == pytest.approx(3.0 + 1.0)
    assert value(metrics, "asr_errors_total", code="EmptyCommit") == 1


def test_the_end_of_a_session_is_counted():
    metrics = Metrics()
    Telemetry(metrics, Latencies()).closed("finished", stale_outcomes=3, rewrites=2, contradictions=1)
    assert value(metrics, "asr_sessions_total", reason="finished") == 1
    assert value(metrics, "asr_stale_outcomes_total") == 3
    assert value(metrics, "asr_stable_text_rewrites_total") == 2
    assert value(metrics, "asr_finals_contradicting_text_total") == 1


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_quantiles(values):
    p50, p95 = quantiles(values)
    assert min(values) <= p50 <= p95 <= max(values)
