import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.errors import EmptyCommit, EngineError
from qwen3_asr_server.messages import (
    Cleared,
    Committed,
    Final,
    Partial,
    Rejected,
    SpeechStarted,
    SpeechStopped,
    UtteranceFailed,
)
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.telemetry import Latencies, Telemetry, quantiles

S = 16_000


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


def test_the_end_of_a_session_is_counted():
    metrics = Metrics()
    Telemetry(metrics, Latencies()).closed("finished", stale_outcomes=3)
    assert value(metrics, "asr_sessions_total", reason="finished") == 1
    assert value(metrics, "asr_stale_outcomes_total") == 3


def test_stable_text_is_compared_with_what_was_told(caplog):
    metrics = Metrics()
    telemetry = Telemetry(metrics, Latencies())
    events = [
        Partial(0, "", "one two", "en"),
        Partial(0, "one", " two", "en"),
        Partial(1, "two", "", "en"),
        Partial(0, "one two", "", "en"),
        Partial(0, "one", " too", "en"),  # taken back
        Partial(0, "on", "", "en"),  # and again
        Committed(0, None),
        Final(0, "on the", "en"),
        Committed(1, 0),
        Final(1, "too", "en"),  # contradicts
        Partial(2, "three", "", "en"),
        Committed(2, 1),
        Final(2, "", "en"),  # contradicts
        Committed(3, 2),
        Final(3, "four", "en"),
    ]
    for event in events:
        telemetry.event(event, now=1.0)
    assert value(metrics, "asr_stable_text_rewrites_total") == 2
    assert value(metrics, "asr_finals_contradicting_text_total") == 2
    with caplog.at_level(logging.INFO):
        telemetry.closed("finished", stale_outcomes=0)
    (line,) = caplog.records
    assert (line.stable_text_rewrites, line.finals_contradicting_text) == (2, 2)


@pytest.mark.parametrize(
    "utterance",
    [
        pytest.param([SpeechStarted, Partial, SpeechStopped, Cleared], id="cleared"),
        pytest.param([SpeechStarted, Partial, SpeechStopped], id="stopped and never committed"),
        pytest.param([SpeechStarted, SpeechStopped, Committed, Final], id="recognised"),
        pytest.param([SpeechStarted, SpeechStopped, Committed, UtteranceFailed], id="failed"),
    ],
)
def test_utterances_that_are_over_are_forgotten(utterance):
    made = {
        SpeechStarted: lambda item: SpeechStarted(item, 0),
        SpeechStopped: lambda item: SpeechStopped(item, 0),
        Partial: lambda item: Partial(item, "", "a", "en"),
        Committed: lambda item: Committed(item, None),
        Final: lambda item: Final(item, "a", "en"),
        UtteranceFailed: lambda item: UtteranceFailed(item, EngineError("no")),
        Cleared: lambda item: Cleared(),
    }
    telemetry = Telemetry(Metrics(), Latencies())
    for item in range(1000):
        for kind in utterance:
            telemetry.event(made[kind](item), now=float(item))
    assert len(telemetry._items) <= 1


def test_clearing_keeps_what_waits_for_its_final():
    metrics = Metrics()
    telemetry = Telemetry(metrics, Latencies())
    telemetry.commit(now=10.0)
    telemetry.event(Committed(0, None), now=10.0)
    telemetry.event(Cleared(), now=10.5)
    telemetry.event(Final(0, "a", "en"), now=11.0)
    assert value(metrics, "asr_final_latency_seconds_sum", since="commit") == pytest.approx(1.0)


def test_commits_that_are_never_answered_take_no_memory():
    telemetry = Telemetry(Metrics(), Latencies())
    for number in range(10_000):
        telemetry.commit(now=float(number))
    assert len(telemetry._commits) <= 256


def test_a_pushed_file_says_nothing_about_latency():
    metrics, recent = Metrics(), Latencies()
    telemetry = Telemetry(metrics, recent)
    telemetry.received(1200 * S, now=100.0)
    telemetry.event(SpeechStarted(0, at=S), now=160.0)
    telemetry.event(Partial(0, "", "a", "en"), now=160.0)
    telemetry.event(SpeechStopped(0, at=2 * S), now=160.0)
    telemetry.scored(3 * S, now=160.0)
    telemetry.event(Committed(0, None), now=160.0)
    telemetry.event(Final(0, "a", "en"), now=160.25)
    telemetry.commit(now=161.0)
    telemetry.event(Committed(1, 0), now=200.0)
    telemetry.event(Final(1, "b", "en"), now=201.0)
    assert recent.summary() == {}
    assert value(metrics, "asr_first_partial_seconds_count") == 0
    assert value(metrics, "asr_vad_lag_seconds_count") == 0
    for since, count in (("endpoint", 1), ("commit", None), ("speech_end", None)):
        assert value(metrics, "asr_final_latency_seconds_count", since=since) == count


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_quantiles(values):
    p50, p95 = quantiles(values)
    assert min(values) <= p50 <= p95 <= max(values)
