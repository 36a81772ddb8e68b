"""The checks of `support.invariants` notice what they are for."""

from collections.abc import Callable
from typing import Any

import pytest

from support.invariants import COMPLETED, TEXT, assert_finished, assert_invariants, transcripts

Frames = list[dict[str, Any]]

SESSION = {
    "id": "sess_" + "a" * 21,
    "object": "realtime.session",
    "model": "m",
    "modalities": ["text"],
    "input_audio_format": "pcm",
    "sample_rate": 16_000,
    "input_audio_transcription": None,
    "turn_detection": None,
}
ITEMS = ["item_" + letter * 21 for letter in "AB"]
CONTENT = [{"type": "input_audio", "transcript": None}]


def session() -> Frames:
    """Return a session with two utterances; the events stand at 0, 1–6 and 7–12."""
    frames: Frames = [{"type": "session.created", "session": SESSION}]
    previous = None
    for number, item in enumerate(ITEMS):
        spoken = {"item_id": item, "content_index": 0, "language": "en", "emotion": "neutral"}
        created = {"id": item, "object": "realtime.item", "type": "message", "role": "user", "content": CONTENT}
        frames += [
            {"type": "input_audio_buffer.speech_started", "item_id": item, "audio_start_ms": 1000 * number},
            {"type": TEXT, **spoken, "text": "hello", "stash": " wor"},
            {"type": "input_audio_buffer.speech_stopped", "item_id": item, "audio_end_ms": 1000 * number + 500},
            {"type": "input_audio_buffer.committed", "item_id": item, "previous_item_id": previous},
            {
                "type": "conversation.item.created",
                "item": created | {"status": "completed"},
                "previous_item_id": previous,
            },
            {"type": COMPLETED, **spoken, "transcript": f"hello world {number}"},
        ]
        previous = item
    frames.append({"type": "session.finished", "transcript": "hello world 0 hello world 1"})
    return [{"event_id": f"event_{number:021}", **frame} for number, frame in enumerate(frames)]


def test_a_good_session_passes() -> None:
    assert_finished(session(), audio_ms=1500)
    assert transcripts(session()) == ["hello world 0", "hello world 1"]


def swap(first: int, second: int) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frames[first], frames[second] = frames[second], frames[first]

    return change


def put(at: int, **fields: Any) -> Callable[[Frames], None]:
    return lambda frames: frames[at].update(fields)


def repeat(at: int) -> Callable[[Frames], None]:
    return lambda frames: frames.insert(at + 1, frames[at] | {"event_id": "event_" + "z" * 21})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (swap(0, 1), "not the first frame"),
        (swap(3, 4), "committed before its speech stopped"),
        (swap(4, 6), "ended before it was committed"),
        (swap(2, 6), "ended before it was committed"),
        (repeat(0), "two sessions"),
        (repeat(1), "started twice"),
        (repeat(3), "stopped twice"),
        (repeat(4), "committed twice"),
        (repeat(5), "created twice"),
        (repeat(6), "ended twice"),
        (repeat(13), "follows session.finished"),
        (put(2, text="hello", stash=None), "stash is not a string"),
        (put(2, language=None), "None"),
        (put(2, surprise=1), "fields"),
        (put(8, item_id=ITEMS[0]), "text after the item's end"),
        (put(10, previous_item_id=None), "chain"),
        (put(3, audio_end_ms=-1), "ends before it starts"),
        (put(7, audio_start_ms=400), "before the last one ended"),
        (put(9, audio_end_ms=1501), "beyond the audio"),
        (put(5, event_id="event_1"), "event_id"),
        (put(5, event_id="event_" + "0" * 21), "used twice"),
        (put(13, transcript="hello"), "another transcript"),
        (put(13, type="session.over"), "unknown event"),
        (lambda frames: frames.pop(12), "still open"),
        (lambda frames: frames.pop(13), "last frame"),
    ],
)
def test_a_bad_session_is_noticed(change: Callable[[Frames], None], complaint: str) -> None:
    frames = session()
    change(frames)
    with pytest.raises(AssertionError, match=complaint):
        assert_finished(frames, audio_ms=1500)


def test_confirmed_text_may_grow_and_never_change() -> None:
    frames = session()
    repeat(2)(frames)
    put(3, text="hello world", stash="")(frames)
    assert_invariants(frames)
    put(3, text="hallo world")(frames)
    with pytest.raises(AssertionError, match="rewritten"):
        assert_invariants(frames)
