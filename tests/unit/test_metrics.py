from prometheus_client.parser import text_string_to_metric_families

from qwen3_asr_server.metrics import Metrics

EXPECTED = {
    "asr_sessions_open", "asr_sessions", "asr_sessions_refused", "asr_first_partial_seconds",
    "asr_partial_interval_seconds", "asr_final_latency_seconds", "asr_vad_batch_rows", "asr_vad_batch_seconds",
    "asr_vad_lag_seconds", "asr_buffered_audio_seconds", "asr_audio_received_seconds", "asr_decode_seconds",
    "asr_decode_queue_seconds", "asr_partials_skipped", "asr_errors", "asr_stable_text_rewrites",
    "asr_finals_contradicting_text", "asr_stale_outcomes", "asr_utterances", "asr_partial_slots",
    "asr_engine_up", "asr_engine_deaths", "asr_engine_load_seconds",
    "asr_recordings_open", "asr_recordings", "asr_recorded_seconds",
    "asr_job_files", "asr_job_files_waiting", "asr_job_files_running",
    "asr_alignments", "asr_align_seconds", "asr_words_missed",
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


def test_what_an_engine_knows_of_itself_is_shown_as_counters_and_levels():
    metrics = Metrics()
    metrics.count_engine(lambda: {"cached_tokens": 3, "kv_retention_s": 4.5})
    text = metrics.render().decode()
    assert "asr_engine_cached_tokens_total 3.0" in text
    assert "asr_engine_kv_retention_s 4.5" in text


def test_what_the_engine_counts_is_shown_and_vanishes_with_it():
    metrics, counts = Metrics(), {"cached_tokens": 7, "kv_tokens": 12.5}
    metrics.count_engine(lambda: counts)
    text = metrics.render().decode()
    assert "\nasr_engine_cached_tokens_total 7.0\n" in text
    assert "# TYPE asr_engine_cached_tokens_total counter" in text
    assert "\nasr_engine_kv_tokens 12.5\n" in text
    assert "# TYPE asr_engine_kv_tokens gauge" in text
    counts.clear()
    assert set(rendered(metrics)) == EXPECTED
