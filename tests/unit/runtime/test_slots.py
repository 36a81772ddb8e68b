import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.runtime.slots import PartialSlots, Waiting, choose, next_due

times = st.floats(0, 100, allow_nan=False)


@given(st.lists(st.tuples(times, times), max_size=30), times, st.integers(-2, 40))
def test_the_longest_waiting_of_those_due_come_first(offers, now, free):
    waiting = [Waiting(number, last_step, due, 0.0) for number, (last_step, due) in enumerate(offers)]
    chosen = choose(waiting, now, free)
    due = [w for w in waiting if w.due <= now]
    assert len(chosen) == min(max(0, free), len(due))
    assert all(w in due for w in chosen)
    left = [w.last_step for w in due if w not in chosen]
    assert all(served.last_step <= last for served in chosen for last in left)
    later = [w.due for w in waiting if w.due > now]
    assert next_due(waiting, now) == min(later, default=None)


@pytest.mark.parametrize(
    ("cap", "partial_s", "final_wait_s", "seconds", "expected"),
    [
        (32, 0.1, 0.0, 0, 4),
        (32, 0.1, 0.0, 3, 7),
        (32, 0.15, 0.03, 100, 32),  # on the bounds is good enough
        (2, 0.1, 0.0, 9, 2),
        (32, 0.2, 0.0, 1, 3),
        (32, 0.2, 0.0, 30, 1),
        (32, 0.1, 0.04, 1, 3),
        (1, 0.9, 0.9, 9, 1),
    ],
)
def test_slots_follow_the_measured_service(cap, partial_s, final_wait_s, seconds, expected):
    slots = PartialSlots(cap, now=10.0)
    for second in range(1, seconds + 1):
        for tenth in range(10):
            slots.final_waited(final_wait_s, 10.0 + second - 1 + tenth / 10)
            slots.partial_served(partial_s, 10.0 + second - 1 + tenth / 10)
        slots.partial_served(partial_s, 10.0 + second)
    assert slots.slots == expected


def test_one_slow_partial_in_a_hundred_is_no_reason():
    slots = PartialSlots(32, now=0.0)
    for number in range(100):
        slots.partial_served(3.0 if number == 50 else 0.01, now=number / 100)
    slots.partial_served(0.01, now=1.0)
    assert slots.slots == 5


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5), st.floats(0, 3)), max_size=50), st.integers(1, 40))
def test_slots_stay_in_their_bounds(notes, cap):
    slots, now = PartialSlots(cap, now=0.0), 0.0
    for partial, took_s, pause_s in notes:
        now += pause_s
        (slots.partial_served if partial else slots.final_waited)(took_s, now)
        assert 1 <= slots.slots <= cap
