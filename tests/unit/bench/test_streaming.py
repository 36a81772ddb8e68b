"""How events become latencies, and when a run counts."""

from typing import Any

import pytest
from _clients import Utterance, append_frames, match
from _load import COMPLETED, PARTIAL, STARTED, STOPPED
from _report import percentile
from _streaming_report import knee
from _tiny_speech import RATE, Spoken, dictation, talk
from streaming import latencies, why_void

SENT_AT = [100 + 0.1 * packet for packet in range(100)]
SPOKEN = [Spoken(RATE, 2 * RATE, "en"), Spoken(4 * RATE, 5 * RATE, "en")]


def event(kind: str, item: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "item_id": item, **more}


def test_events_go_to_the_utterance_in_which_their_item_began() -> None:
    arrived = [
        (101.2, event(STARTED, "a", audio_start_ms=950)),
        (101.6, event(PARTIAL, "a", text="")),
        (102.3, event(STOPPED, "a")),
        (102.4, event(COMPLETED, "a", transcript="open")),
        (104.2, event(STARTED, "b", audio_start_ms=4010)),
        (105.3, event(STOPPED, "b")),
        (104.9, event(STARTED, "c", audio_start_ms=4700)),
        (105.4, event(COMPLETED, "b", transcript="the")),
        (105.6, event(STOPPED, "c")),
        (105.7, event(COMPLETED, "c", transcript="door")),
    ]
    first, second = match(SPOKEN, arrived, SENT_AT)
    assert first == Utterance(SENT_AT[10], SENT_AT[19], [101.6], 102.3, 102.4, "open")
    assert (second.endpoint, second.final, second.text) == (105.6, 105.7, "the door")


def test_times_count_from_what_was_said() -> None:
    utterance = Utterance(10.0, 12.0, [10.5, 11.0, 11.6, 12.45], endpoint=12.4, final=12.5, text="yes")
    found = latencies([utterance, Utterance(20.0, 21.0)])
    assert found["first_partial"]["p50"] == 500
    assert found["partial_interval"] == {"samples": 2, "p50": 600.0, "p95": 600.0, "p99": 600.0}
    assert found["final_after_speech"]["p50"] == 500
    assert found["final_after_endpoint"]["p95"] == 100
    assert (found["utterances"], found["without_final"], found["without_text"]) == (2, 1, 0)


SOUND = {"late_p99_ms": 3.0, "dropped": 0, "without_final": 0, "mismatches": 0}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"late_p99_ms": 20.1}, "late client"),
        ({"dropped": 1}, "dropped sessions"),
        ({"without_final": 1}, "utterances without a final"),
        ({"mismatches": 1}, "other utterances than alone"),
    ],
)
def test_when_a_run_is_void(change: dict[str, float], why: str) -> None:
    assert why_void(SOUND | change) == why


@pytest.mark.parametrize(
    ("p95s", "voids", "expected"),
    [
        ([10, 20, 30], ["", "", ""], 16),
        ([10, 50, 30], ["", "", ""], 1),
        ([60, 20, 30], ["", "", ""], 0),
        ([10, 20, 30], ["", "late client", ""], 1),
    ],
)
def test_the_knee_is_the_last_run_before_the_first_miss(p95s: list[float], voids: list[str], expected: int) -> None:
    rows = [
        {"sessions": sessions, "void": void, "final_after_endpoint": {"p95": p95}}
        for sessions, p95, void in zip((1, 4, 16), p95s, voids, strict=True)
    ]
    assert knee(rows[::-1]) == expected


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.95, 5.0), (1.0, 5.0)])
def test_percentiles(share: float, value: float) -> None:
    assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], share) == value


def test_sessions_share_no_speech_and_say_the_same_every_time() -> None:
    first, again, other = talk(1, 12), talk(1, 12), talk(2, 12)
    assert (first.samples == again.samples).all()
    assert first.utterances == again.utterances
    assert len(first.samples) == 12 * RATE
    here, there = first.samples[first.utterances[0].begin :][:RATE], other.samples[other.utterances[0].begin :][:RATE]
    assert not (here == there).any()
    for spoken, following in zip(first.utterances, first.utterances[1:], strict=False):
        assert following.begin - spoken.end > RATE
    assert len(append_frames(first)) == 120


def test_dictation_has_no_long_pause() -> None:
    audible = abs(dictation(0, 20).reshape(-1, RATE // 2)).max(axis=1) > 0.01
    assert audible.all()
