import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.runtime.arrivals import Arrivals

S = 16_000


@given(st.lists(st.integers(160, 4000), min_size=1, max_size=40), st.integers(0, 200_000))
def test_arrivals_are_those_of_the_packet(sizes, sample):
    arrivals, ends = Arrivals(), []
    for number, size in enumerate(sizes):
        ends.append((ends[-1] if ends else 0) + size)
        arrivals.add(ends[-1], float(number))
    assert arrivals.of(sample) == next((float(n) for n, end in enumerate(ends) if sample < end), None)


def test_what_the_detector_is_long_past_is_forgotten():
    arrivals = Arrivals()
    for second in range(1, 3600):
        arrivals.add(second * S, float(second))
        arrivals.forget(second * S)
    assert len(arrivals) <= 32
    assert arrivals.of(3590 * S) == 3591.0
    assert arrivals.of(0) is None


def test_what_waits_for_the_detector_is_kept_however_much_it_is():
    arrivals = Arrivals()
    for second in range(1, 600):
        arrivals.add(second * S, float(second))
        arrivals.forget(0)
    assert arrivals.of(0) == 1.0


def test_tiny_packets_share_an_entry():
    arrivals = Arrivals()
    for sample in range(1, 2 * S + 1):
        arrivals.add(sample, sample / S)
    assert len(arrivals) <= 200
    assert arrivals.of(S) == pytest.approx(1.0, abs=0.011)


@pytest.mark.parametrize(
    ("packets", "pushed"),
    [
        pytest.param([(0.1, n / 10) for n in range(600)], False, id="live"),
        pytest.param([(4.0, 0.0)], False, id="a short clip"),
        pytest.param([(6.0, 0.0)], True, id="a file"),
        pytest.param([(0.1, n / 1000) for n in range(100)], True, id="a file in packets"),
        pytest.param([(0.1, 0.0), (9.0, 9.0)], False, id="a stalled network catches up"),
        pytest.param([(0.1, 0.0), (30.0, 600.0)], True, id="a file after a long pause"),
        pytest.param([(6.0, 0.0), (0.1, 2.0)], False, id="live again"),
    ],
)
def test_what_comes_faster_than_it_is_spoken_is_pushed(packets, pushed):
    arrivals, end = Arrivals(), 0
    for seconds, at in packets:
        end += round(seconds * S)
        arrivals.add(end, at)
    assert arrivals.pushed is pushed
    assert (arrivals.of(end - 1) is None) is pushed
