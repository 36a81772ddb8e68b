from contextlib import ExitStack

import pytest

from qwen3_asr_server.errors import ShuttingDown
from qwen3_asr_server.runtime.admission import Admission, Refused


@pytest.mark.parametrize(
    ("max_sessions", "max_per_key", "inside", "newcomer", "reason"),
    [
        (2, 0, ["a"], "a", None),
        (2, 0, ["a", None], "b", "sessions"),
        (9, 1, ["a"], "b", None),
        (9, 1, ["a"], "a", "key"),
        (9, 1, [None, None], None, None),
        (1, 1, ["a"], "a", "sessions"),
    ],
)
def test_limits(max_sessions, max_per_key, inside, newcomer, reason):
    admission = Admission(max_sessions, max_per_key)
    with ExitStack() as held:
        for key in inside:
            held.enter_context(admission.admit(key))
        assert admission.in_use == len(inside)
        if reason is None:
            held.enter_context(admission.admit(newcomer))
            assert admission.in_use == len(inside) + 1
        else:
            with pytest.raises(Refused) as refused, admission.admit(newcomer):
                pytest.fail("it was admitted")
            assert refused.value.reason == reason
            assert refused.value.retry_after_s > 0
    assert admission.in_use == 0


def test_what_there_are_too_many_of_is_said():
    admission = Admission(0, what="recordings")
    with pytest.raises(Refused, match="Too many recordings"), admission.admit():
        pytest.fail("it was admitted")


def test_a_lease_ends_with_an_exception_too():
    admission = Admission(1)
    with pytest.raises(ZeroDivisionError), admission.admit("a"):
        raise ZeroDivisionError
    with admission.admit("a"):
        assert admission.in_use == 1


def test_closed_refuses_newcomers_and_keeps_leases():
    admission = Admission(5)
    with admission.admit():
        admission.close()
        with pytest.raises(ShuttingDown), admission.admit():
            pytest.fail("it was admitted")
        assert admission.in_use == 1
