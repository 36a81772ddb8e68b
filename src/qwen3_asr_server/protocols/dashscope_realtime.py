"""The DashScope Qwen-ASR realtime protocol, as `wss://…/api-ws/v1/realtime` speaks it.

A sans-IO machine (see `_base` for the driver's contract): client messages become commands, session
events become server messages. It knows the wire's names, ids and error shapes. It does not know audio
(bytes pass through), whether there is anything to commit (the session says so), sockets or time.

`docs/api/dashscope.md` lists every event and field with the test that shows it.
"""

import re
from typing import Any, ClassVar, Final, assert_never

from qwen3_asr_server import messages
from qwen3_asr_server.domain import SessionConfig, Word, ms_of_samples
from qwen3_asr_server.errors import AsrServerError, ClientError, InvalidAudio, InvalidEvent, InvalidValue, UnknownModel
from qwen3_asr_server.messages import Event
from qwen3_asr_server.protocols import _dashscope_frames as frames
from qwen3_asr_server.protocols._base import Close, Handshake, IdFactory, Offers, SessionRequest
from qwen3_asr_server.protocols._dashscope_errors import wire_error, wire_message
from qwen3_asr_server.protocols._dashscope_session import WireSession, merge
from qwen3_asr_server.protocols._fields import Fields, JsonObject, quoted
from qwen3_asr_server.protocols._json import encoded
from qwen3_asr_server.protocols._machine import Machine

DEFAULT_MODEL: Final = "qwen3-asr-flash-realtime"
_VENDOR_MODEL: Final = re.compile(rf"{DEFAULT_MODEL}(-\d{{4}}-\d{{2}}-\d{{2}})?")


class DashscopeRealtime(Machine):
    """One connection of the DashScope realtime protocol."""

    name: ClassVar[str] = "dashscope_realtime"
    path: ClassVar[str] = "/api-ws/v1/realtime"

    def __init__(self, handshake: Handshake, offers: Offers, new_id: IdFactory) -> None:
        super().__init__()
        asked = handshake.query.get("model")
        capabilities = offers(asked)
        self._capabilities = capabilities
        self._new_id = new_id
        self._item_ids: dict[int, str] = {}
        self._audio_received = False
        self._finishing = False
        self._last_failed = False
        self._errors_in_row = 0
        model = asked or DEFAULT_MODEL
        self._session = WireSession.default(new_id("sess_"), model, capabilities)
        known = {DEFAULT_MODEL, capabilities.model, *capabilities.models}
        if _VENDOR_MODEL.fullmatch(model) or model in known:
            self._send("session.created", session=self._session.created())
            self._to_open = SessionRequest(asked, self.config)
        else:
            names = ", ".join(sorted(known))
            self._end(UnknownModel(f"Model {quoted(model)} does not exist. Models here: {names}.", param="model"))

    @property
    def config(self) -> SessionConfig:
        """The session's configuration now."""
        return self._session.config(self._capabilities.default_threshold)

    @staticmethod
    def parse(message: str | bytes) -> frames.Parsed:
        """Decode a message without touching any state. Never raises; errors are part of the result."""
        return frames.parse(message)

    def receive(self, parsed: frames.Parsed) -> None:
        """Take in what `parse` returned. Whatever comes after `session.finish` is too late to matter."""
        if self._finishing or self._close is not None:
            return
        # The last message counts as good only now: the session may have rejected it meanwhile.
        if not self._last_failed:
            self._errors_in_row = 0
        self._last_failed = False
        match parsed:
            case frames.Append():
                self._receive_append(parsed)
            case frames.ClientEvent():
                try:
                    self._receive_event(parsed)
                except ClientError as error:
                    self._refuse(error, parsed.event_id)
            case frames.Malformed():
                self._refuse(parsed.error, parsed.event_id)
            case _:
                assert_never(parsed)

    def send_event(self, event: Event) -> None:
        """Queue what `event` looks like on the wire. Nothing follows the end of the session."""
        if self._close is not None:
            return
        match event:
            case messages.SpeechStarted(item, at):
                self._send(
                    "input_audio_buffer.speech_started", audio_start_ms=ms_of_samples(at), item_id=self._id_of(item)
                )
            case messages.SpeechStopped(item, at):
                self._send(
                    "input_audio_buffer.speech_stopped", audio_end_ms=ms_of_samples(at), item_id=self._id_of(item)
                )
            case messages.Committed():
                self._send_committed(event)
            case messages.Partial():
                self._send_transcription(
                    "text", event.item, text=event.stable, stash=event.unstable, **self._traits(event.language)
                )
            case messages.Final():
                self._send_final(event)
            case messages.UtteranceFailed(item, error):
                wire = wire_error(error)
                failure = {"code": wire.failed_code or wire.code, "message": wire_message(error), "param": error.param}
                self._errors.append(wire.failed_code or wire.code)
                self._send_transcription("failed", item, error=failure)
                self._forget_before(item)
            case messages.Cleared():
                self._send("input_audio_buffer.cleared")
            case messages.Rejected(error, event_id):
                self._refuse(error, event_id)
            case messages.Finished(transcript):
                self._send("session.finished", transcript=transcript)
                self._close = Close(1000, "session finished", self._capabilities.finish_grace_s)
            case messages.Closing(error):
                self._end(error)
            case _:
                assert_never(event)

    # Client events

    def _receive_append(self, append: frames.Append) -> None:
        if len(append.audio) > self._capabilities.max_append_bytes:
            limit = self._capabilities.max_append_bytes
            error = InvalidAudio(f"One append holds at most {limit} bytes of audio.", param="audio")
            self._refuse(error, append.event_id)
        elif append.audio:
            self._audio_received = True
            self._commands.append(messages.AppendBytes(append.audio, append.event_id))

    def _receive_event(self, event: frames.ClientEvent) -> None:
        match event.type:
            case "session.update":
                self._update(event.body)
            case "input_audio_buffer.commit":
                self._commands.append(messages.Commit(event.event_id))
            case "input_audio_buffer.clear":
                self._commands.append(messages.Clear(event.event_id))
            case "session.finish":
                self._finishing = True
                self._commands.append(messages.Finish())
            case "response.create" | "response.cancel" | "conversation.item.create" | "input_image_buffer.append":
                raise InvalidEvent(f"{quoted(event.type)} is not supported: this model transcribes.", param="type")
            case _:
                raise InvalidEvent(f"Unknown event type: {quoted(event.type)}.", param="type")

    def _update(self, body: JsonObject) -> None:
        changes = Fields.of(body.get("session"), "session")
        session = merge(self._session, changes, self._capabilities)
        if self._audio_received and session.audio != self._session.audio:
            name = "sample_rate" if session.audio.encoding is self._session.audio.encoding else "input_audio_format"
            raise InvalidValue("The audio format cannot change after the first append.", param=f"session.{name}")
        self._session = session
        self._commands.append(messages.Configure(self.config))
        self._send("session.updated", session=session.updated(changes.values))

    # Server events

    def _send_committed(self, event: messages.Committed) -> None:
        item_id = self._id_of(event.item)
        previous_id = None if event.previous is None else self._id_of(event.previous)
        self._send("input_audio_buffer.committed", previous_item_id=previous_id, item_id=item_id)
        item = {
            "id": item_id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        self._send("conversation.item.created", previous_item_id=previous_id, item=item)

    def _send_final(self, event: messages.Final) -> None:
        extras: dict[str, Any] = {}
        if event.words is not None:
            extras["words"] = [_word(word) for word in event.words]
        if event.confidence is not None and self._session.words:
            extras["confidence"] = event.confidence
        self._send_transcription(
            "completed", event.item, transcript=event.text, **self._traits(event.language), **extras
        )
        self._forget_before(event.item)

    def _traits(self, language: str) -> dict[str, str]:
        emotion = self._capabilities.emotion
        return {"language": language} if emotion is None else {"language": language, "emotion": emotion}

    def _send_transcription(self, kind: str, item: int, **fields: Any) -> None:
        kind = f"conversation.item.input_audio_transcription.{kind}"
        self._send(kind, item_id=self._id_of(item), content_index=0, **fields)

    def _id_of(self, item: int) -> str:
        if item not in self._item_ids:
            self._item_ids[item] = self._new_id("item_")
        return self._item_ids[item]

    def _forget_before(self, item: int) -> None:
        # Items end in order; the last one may still be named as the previous of the next.
        self._item_ids = {number: text for number, text in self._item_ids.items() if number >= item}

    def _refuse(self, error: AsrServerError, event_id: str | None) -> None:
        # The SDK takes any `error` between finish and finished for the end of the session.
        if self._finishing:
            return
        self._last_failed = True
        self._errors_in_row += 1
        self._send_error(error, event_id)
        if self._errors_in_row >= self._capabilities.max_errors:
            self._close = Close(1008, "too many errors")

    def _end(self, error: AsrServerError) -> None:
        self._send_error(error, None)
        wire = wire_error(error)
        self._close = Close(wire.close_code, wire.code)

    def _send_error(self, error: AsrServerError, event_id: str | None) -> None:
        wire = wire_error(error)
        self._errors.append(wire.code)
        self._send(
            "error",
            error={
                "type": wire.type,
                "code": wire.code,
                "message": wire_message(error),
                "param": error.param,
                "event_id": event_id,
            },
        )

    def _send(self, kind: str, **fields: Any) -> None:
        self._messages.append(encoded({"event_id": self._new_id("event_"), "type": kind} | fields))


PROTOCOL = DashscopeRealtime


def _word(word: Word) -> dict[str, Any]:
    timed: dict[str, Any] = {
        "text": word.text,
        "begin_time": ms_of_samples(word.start),
        "end_time": ms_of_samples(word.end),
    }
    if word.confidence is not None:
        timed["confidence"] = word.confidence
    return timed
