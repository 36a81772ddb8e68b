"""What must hold of every DashScope realtime session, whatever was said in it and however it was cut.

`assert_invariants(frames)` takes all frames that a server sent on one connection, decoded, in order. It knows
the wire only; it is used on recorded sessions of real clients and on sessions made by machines alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Frame = Mapping[str, Any]

TEXT = "conversation.item.input_audio_transcription.text"
COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"

_TRANSCRIPTION = {"item_id", "content_index", "language", "emotion"}
FIELDS: Mapping[str, set[str]] = {
    "session.created": {"session"},
    "session.updated": {"session"},
    "input_audio_buffer.speech_started": {"audio_start_ms", "item_id"},
    "input_audio_buffer.speech_stopped": {"audio_end_ms", "item_id"},
    "input_audio_buffer.committed": {"previous_item_id", "item_id"},
    "input_audio_buffer.cleared": set(),
    "conversation.item.created": {"previous_item_id", "item"},
    TEXT: _TRANSCRIPTION | {"text", "stash"},
    COMPLETED: _TRANSCRIPTION | {"transcript"},
    FAILED: {"item_id", "content_index", "error"},
    "session.finished": {"transcript"},
    "error": {"error"},
}
"""Fields of each event besides `type` and `event_id`."""

ON_REQUEST: Mapping[str, set[str]] = {COMPLETED: {"words", "confidence"}}
"""Fields that may come on top where the client asked for them."""

EMOTIONS = {"surprised", "neutral", "happy", "sad", "disgusted", "angry", "fearful"}


@dataclass
class _Item:
    """How far one item has come."""

    vad: bool
    start_ms: int = 0
    stopped: bool = False
    committed: bool = False
    created: bool = False
    ended: bool = False
    text: str = ""


@dataclass
class _Session:
    """What has been seen so far; one method for each event with rules of its own."""

    audio_ms: float | None
    items: dict[str, _Item] = field(default_factory=dict)
    committed: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    clock_ms: int = 0
    id: str | None = None
    finished: bool = False

    def see(self, frame: Frame) -> None:
        """Check one frame against all before it."""
        assert not self.finished, "something follows session.finished"
        kind = frame["type"]
        if kind == "session.created":
            assert self.id is None, "two sessions on one connection"
            self.id = frame["session"]["id"]
            return
        assert self.id is not None, "session.created is not the first frame"
        match kind:
            case "session.updated":
                assert frame["session"]["id"] == self.id, "the session changed its id"
            case "input_audio_buffer.speech_started":
                self._started(frame["item_id"], frame["audio_start_ms"])
            case "input_audio_buffer.speech_stopped":
                self._stopped(frame["item_id"], frame["audio_end_ms"])
            case "input_audio_buffer.committed":
                self._committed(frame["item_id"], frame["previous_item_id"])
            case "input_audio_buffer.cleared":
                self.items = {name: item for name, item in self.items.items() if item.committed}
            case "conversation.item.created":
                self._created(frame["item"], frame["previous_item_id"])
            case "conversation.item.input_audio_transcription.text":
                self._text(frame)
            case (
                "conversation.item.input_audio_transcription.completed"
                | "conversation.item.input_audio_transcription.failed"
            ):
                self._ended(frame["item_id"])
            case "session.finished":
                self.finished = True
                assert all(item.ended for item in self.items.values()), "finished with an item still open"

    def _started(self, name: str, start_ms: int) -> None:
        assert name not in self.items, "an item started twice"
        assert not any(item.vad and not item.stopped for item in self.items.values()), "two utterances at once"
        assert start_ms >= self.clock_ms, "an utterance starts before the last one ended"
        self._on_clock(start_ms)
        self.items[name] = _Item(vad=True, start_ms=start_ms)

    def _stopped(self, name: str, end_ms: int) -> None:
        item = self.items[name]
        assert item.vad, "speech stopped in an item that was committed by hand"
        assert not item.stopped, "speech stopped twice"
        assert end_ms >= item.start_ms, "speech ends before it starts"
        self._on_clock(end_ms)
        item.stopped = True
        self.clock_ms = end_ms

    def _committed(self, name: str, previous: str | None) -> None:
        item = self.items.setdefault(name, _Item(vad=False))
        assert not item.committed, "committed twice"
        assert item.stopped or not item.vad, "committed before its speech stopped"
        assert previous == (self.committed[-1] if self.committed else None), "the chain of items is broken"
        item.committed = True
        self.committed.append(name)

    def _created(self, created: Frame, previous: str | None) -> None:
        name = created["id"]
        item = self.items[name]
        assert not item.created, "created twice"
        item.created = True
        before = self.committed[: self.committed.index(name)] if item.committed else self.committed
        assert previous == (before[-1] if before else None), "the chain of items is broken"
        assert created["object"] == "realtime.item"
        assert (created["type"], created["role"]) == ("message", "user")
        assert created["content"] == [{"type": "input_audio", "transcript": None}]

    def _text(self, frame: Frame) -> None:
        item = self.items[frame["item_id"]]
        assert not item.ended, "text after the item's end"
        assert item.vad or item.committed, "text of an item that was not committed"
        assert isinstance(frame["text"], str), "text is not a string"
        assert isinstance(frame["stash"], str), "stash is not a string"
        assert frame["text"].startswith(item.text), f"confirmed text was rewritten: {item.text!r} → {frame['text']!r}"
        item.text = frame["text"]

    def _ended(self, name: str) -> None:
        item = self.items[name]
        assert item.committed, "ended before it was committed"
        assert not item.ended, "ended twice"
        item.ended = True
        self.ended.append(name)
        assert self.ended == self.committed[: len(self.ended)], "items end in another order than they were committed"

    def _on_clock(self, at_ms: int) -> None:
        assert at_ms >= 0
        assert self.audio_ms is None or at_ms <= self.audio_ms, "a time lies beyond the audio that was sent"


def assert_invariants(frames: Sequence[Frame], *, audio_ms: float | None = None) -> None:
    """Check all frames of one connection.

    Args:
        frames: what the server sent, oldest first.
        audio_ms: length of the audio that the client sent, in ms, where it is known.
    """
    session = _Session(audio_ms)
    for number, frame in enumerate(frames):
        try:
            _assert_shape(frame)
            session.see(frame)
        except (AssertionError, KeyError) as error:
            raise AssertionError(f"frame {number}: {error}\n{frame}") from error
    ids = [frame["event_id"] for frame in frames]
    assert len(set(ids)) == len(ids), "an event_id was used twice"


def assert_finished(frames: Sequence[Frame], *, audio_ms: float | None = None, may_fail: bool = False) -> None:
    """Check a session that went to its end: the invariants, `session.finished` last, and as many ends as starts.

    Args:
        frames: what the server sent, oldest first.
        audio_ms: length of the audio that the client sent, in ms, where it is known.
        may_fail: an utterance may have failed; else that is a failure of the test.
    """
    assert_invariants(frames, audio_ms=audio_ms)
    kinds = [frame["type"] for frame in frames]
    assert kinds[-1] == "session.finished", f"the last frame is {kinds[-1]}"
    ended = kinds.count(COMPLETED) + kinds.count(FAILED)
    assert kinds.count("input_audio_buffer.committed") == ended
    started = kinds.count("input_audio_buffer.speech_started")
    if "input_audio_buffer.cleared" not in kinds:
        assert started == kinds.count("input_audio_buffer.speech_stopped")
    if not may_fail:
        transcripts(frames)
    joined = "".join(frame["transcript"] for frame in frames if frame["type"] == COMPLETED)
    told = "".join(frames[-1]["transcript"].split())
    assert told == "".join(joined.split()), "session.finished tells another transcript"


def transcripts(frames: Sequence[Frame]) -> list[str]:
    """Return the finals in order, empty ones included; an utterance that failed is a failure of the test."""
    failed = [frame for frame in frames if frame["type"] == FAILED]
    assert not failed, failed
    return [frame["transcript"] for frame in frames if frame["type"] == COMPLETED]


def kinds_of(frames: Sequence[Frame]) -> list[str]:
    """Return the event types in order, without the interim texts."""
    return [frame["type"] for frame in frames if frame["type"] != TEXT]


def _assert_shape(frame: Frame) -> None:
    kind = frame["type"]
    assert kind in FIELDS, f"unknown event {kind}"
    extra = frame.keys() - {"type", "event_id"} - ON_REQUEST.get(kind, set())
    assert extra == FIELDS[kind], f"fields {sorted(extra)} instead of {sorted(FIELDS[kind])}"
    assert re.fullmatch(r"event_[0-9A-Za-z]{21}", frame["event_id"]), "event_id has another form"
    if "item_id" in frame:
        assert re.fullmatch(r"item_[0-9A-Za-z]{21}", frame["item_id"]), "item_id has another form"
    if "content_index" in frame:
        assert frame["content_index"] == 0
    if "language" in frame:
        assert isinstance(frame["language"], str)
        assert frame["language"]
        assert frame["emotion"] in EMOTIONS
    if "session" in frame:
        _assert_session(frame["session"])
    if kind == "error":
        _assert_error(frame["error"], {"type", "code", "message", "param", "event_id"})
        assert frame["error"]["type"] in ("invalid_request_error", "server_error")
    if kind == FAILED:
        _assert_error(frame["error"], {"code", "message", "param"})


def _assert_session(session: Frame) -> None:
    assert re.fullmatch(r"sess_[0-9A-Za-z]{21}", session["id"]), "session id has another form"
    assert session["object"] == "realtime.session"
    assert session["modalities"] == ["text"]
    assert {"model", "input_audio_format", "sample_rate", "turn_detection"} <= session.keys()


def _assert_error(error: Frame, fields: set[str]) -> None:
    assert error.keys() == fields, f"fields {sorted(error)} instead of {sorted(fields)}"
    assert isinstance(error["message"], str)
    assert isinstance(error["code"], str)
