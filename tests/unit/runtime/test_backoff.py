import pytest

from qwen3_asr_server.runtime.backoff import Backoff


def test_the_waits_double_up_to_a_minute():
    backoff = Backoff()
    assert backoff.attempt == 0
    assert [backoff.failed(0) for _ in range(10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff.attempt == 10


@pytest.mark.parametrize(("ran_s", "wait_s", "attempt"), [(59.9, 4.0, 4), (60.0, 0.0, 1)])
def test_only_what_ran_for_a_minute_begins_anew(ran_s, wait_s, attempt):
    backoff = Backoff()
    for _ in range(3):
        backoff.failed(0)
    backoff.runs(100)
    assert (backoff.failed(100 + ran_s), backoff.attempt) == (wait_s, attempt)


def test_a_failed_attempt_after_a_healthy_life_is_the_second():
    backoff = Backoff()
    backoff.runs(0)
    assert [backoff.failed(1000), backoff.failed(1001)] == [0.0, 1.0]


def test_an_outage_of_days_does_not_overflow():
    backoff = Backoff()
    assert [backoff.failed(0) for _ in range(5000)][-1] == 60


def test_forgetting():
    backoff = Backoff()
    backoff.failed(0)
    backoff.failed(0)
    backoff.forget()
    assert backoff.attempt == 0
    assert backoff.failed(0) == 0
