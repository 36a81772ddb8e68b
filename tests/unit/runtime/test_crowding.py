import pytest

from qwen3_asr_server.runtime.crowding import Crowding

NOW = 100.0


def watching(*lanes: str, began: float = 0.0) -> Crowding[str]:
    watch: Crowding[str] = Crowding(limit_s=2.0, now=began)
    for lane in lanes:
        watch.wants(lane, since=NOW - 10)
    return watch


def test_partials_that_are_never_heard_are_a_crowd() -> None:
    watch = watching("a", "b", "c")
    assert watch.crowded(NOW)
    watch.heard("a", NOW)
    watch.heard("b", NOW)
    assert watch.crowded(NOW), "they came late"
    assert not watch.crowded(NOW + 6), "of three one waits, and the others were served since"


@pytest.mark.parametrize(
    ("interval_s", "crowded"),
    [(0.4, False), (2.0, False), (2.1, True)],
)
def test_intervals_are_those_between_two_that_were_heard(interval_s: float, crowded: bool) -> None:
    watch: Crowding[str] = Crowding(limit_s=2.0, now=0.0)
    for step in range(5):
        now = NOW - (4 - step) * interval_s
        for lane in ("a", "b"):
            watch.wants(lane, since=now - interval_s - 5 * (step > 0))  # however long ago it was pulled
            watch.heard(lane, now)
    assert watch.crowded(NOW) is crowded


def test_one_alone_is_no_crowd_and_half_is_not_most() -> None:
    assert not watching("a").crowded(NOW)
    watch = watching("a", "b")
    watch.heard("b", NOW - 20)
    watch.wants("b", since=NOW - 1)
    watch.heard("b", NOW)
    watch.forget("a")
    watch.wants("a", NOW - 50)
    assert not watch.crowded(NOW)


def test_a_pause_is_not_a_wait() -> None:
    watch = watching("a", "b")
    for lane in "ab":
        watch.rests(lane)
    assert not watch.crowded(NOW)


def test_who_has_left_does_not_count() -> None:
    watch = watching("a", "b")
    watch.forget("b")
    assert not watch.crowded(NOW)
    assert not [known for known in vars(watch).values() if isinstance(known, dict) and "b" in known]


def test_the_time_before_the_engine_was_there_does_not_count() -> None:
    watch = watching("a", "b")
    watch.restart(NOW)
    watch.wants("a", since=NOW - 50)
    watch.wants("b", since=NOW - 50)
    assert not watch.crowded(NOW + 2)
    assert watch.crowded(NOW + 2.1)


def test_finals_that_wait_for_their_turn_are_a_crowd() -> None:
    watch = watching()
    for lane, wait_s in (("a", 0.1), ("b", 3.0), ("c", 3.0)):
        watch.final_waited(lane, wait_s, NOW)
    assert watch.crowded(NOW)
    assert not watch.crowded(NOW + 5.1)
    assert not watch.crowded(NOW + 10, finals=[("a", NOW + 9), ("b", NOW + 7)])
    assert watch.crowded(NOW + 10, finals=[("a", NOW + 7), ("b", NOW + 7)])
