from prometheus_client.parser import text_string_to_metric_families

from qwen3_asr_server.metrics import Metrics

EXPECTED = {
    "asr_sessions_open", "asr_sessions", "asr_sessions_refused", "asr_first_partial_seconds",
    "asr_partial_interval_seconds", "asr_final_latency_seconds", "asr_vad_batch_rows", "asr_vad_batch_seconds",
    "asr_vad_lag_seconds", "asr_buffered_audio_seconds", "asr_audio_received_seconds", "asr_decode_seconds",
    "asr_decode_queue_seconds", "asr_partials_skipped", "asr_errors", "asr_stable_text_rewrites",
    "asr_finals_contradicting_text", "asr_stale_outcomes", "asr_utterances", "asr_partial_slots",
    "asr_engine_up", "asr_engine_deaths", "asr_engine_load_seconds",
}  # fmt: skip


def rendered(metrics: Metrics) -> dict[str, object]:
    return {f.name: f for f in text_string_to_metric_families(metrics.render().decode()) if "_created" not in f.name}


def test_every_metric_is_rendered():
    assert set(rendered(Metrics())) == EXPECTED


def test_two_servers_do_not_share_counters():
    one, other = Metrics(), Metrics()
    one.sessions.labels(reason="finished").inc()
    assert 'asr_sessions_total{reason="finished"} 1.0' in one.render().decode()
    assert 'asr_sessions_total{reason="finished"}' not in other.render().decode()
