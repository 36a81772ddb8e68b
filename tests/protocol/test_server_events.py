"""protocol.md's sections on server events: exact payloads, in the order of the documented sequences."""

import re
from typing import Any

import pytest

from qwen3_asr_server import errors
from qwen3_asr_server.domain import Word
from qwen3_asr_server.messages import (
    Cleared,
    Closing,
    Committed,
    Event,
    Final,
    Finished,
    Partial,
    SpeechStarted,
    SpeechStopped,
    UtteranceFailed,
)
from qwen3_asr_server.protocols import load_protocol
from qwen3_asr_server.protocols._base import Handshake
from qwen3_asr_server.protocols._dashscope_errors import WIRE_ERRORS
from support.conversation import Conversation, capabilities

ITEM_1 = "item_000000000000000000001"
ITEM_2 = "item_000000000000000000002"
TRANSCRIPTION = "conversation.item.input_audio_transcription"


def payload(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without its id, which must be there."""
    assert re.fullmatch(r"event_[0-9A-Za-z]{21}", message["event_id"])
    return {name: value for name, value in message.items() if name != "event_id"}


def item_object(item_id: str) -> dict[str, Any]:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }


class TestPayloads:
    @pytest.mark.parametrize(
        ("event", "expected"),
        [
            (
                SpeechStarted(item=1, at=16_015),
                {"type": "input_audio_buffer.speech_started", "audio_start_ms": 1000, "item_id": ITEM_1},
            ),
            (
                SpeechStopped(item=1, at=73_600),
                {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": 4600, "item_id": ITEM_1},
            ),
            (
                Partial(item=1, stable="", unstable="今天", language="zh"),
                {
                    "type": f"{TRANSCRIPTION}.text",
                    "item_id": ITEM_1,
                    "content_index": 0,
                    "text": "",
                    "stash": "今天",
                    "language": "zh",
                    "emotion": "neutral",
                },
            ),
            (
                Final(item=1, text="今天天气好。", language="zh"),
                {
                    "type": f"{TRANSCRIPTION}.completed",
                    "item_id": ITEM_1,
                    "content_index": 0,
                    "transcript": "今天天气好。",
                    "language": "zh",
                    "emotion": "neutral",
                },
            ),
            (
                Final(item=1, text="", language="en"),
                {
                    "type": f"{TRANSCRIPTION}.completed",
                    "item_id": ITEM_1,
                    "content_index": 0,
                    "transcript": "",
                    "language": "en",
                    "emotion": "neutral",
                },
            ),
            (
                UtteranceFailed(item=1, error=errors.EngineError("Nothing could be understood.")),
                {
                    "type": f"{TRANSCRIPTION}.failed",
                    "item_id": ITEM_1,
                    "content_index": 0,
                    "error": {"code": "audio_unintelligible", "message": "Nothing could be understood.", "param": None},
                },
            ),
            (Cleared(), {"type": "input_audio_buffer.cleared"}),
            (Finished(transcript="one two"), {"type": "session.finished", "transcript": "one two"}),
        ],
        ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "",
    )
    def test_exact_fields(self, event: Event, expected: dict[str, Any]) -> None:
        talk = Conversation()
        talk.tells(event)
        assert payload(talk.hears_next()) == expected
        talk.is_silent()

    def test_committed_is_followed_by_the_item(self) -> None:
        talk = Conversation()
        talk.tells(Committed(item=1, previous=None))
        first = {"previous_item_id": None, "item_id": ITEM_1}
        assert payload(talk.hears_next()) == {"type": "input_audio_buffer.committed"} | first
        created = {"type": "conversation.item.created", "previous_item_id": None, "item": item_object(ITEM_1)}
        assert payload(talk.hears_next()) == created
        talk.is_silent()

    def test_an_item_names_the_one_before_it(self) -> None:
        talk = Conversation()
        talk.tells(Committed(item=1, previous=None), Final(1, "one", "en"), Committed(item=2, previous=1))
        for type in ("input_audio_buffer.committed", "conversation.item.created", f"{TRANSCRIPTION}.completed"):
            talk.hears(type)
        talk.hears("input_audio_buffer.committed", previous_item_id=ITEM_1, item_id=ITEM_2)
        talk.hears("conversation.item.created", previous_item_id=ITEM_1, item=item_object(ITEM_2))

    def test_one_item_has_one_id_in_all_its_events(self) -> None:
        talk = Conversation()
        talk.tells(
            SpeechStarted(1, 0),
            Partial(1, "", "a", "en"),
            SpeechStopped(1, 16_000),
            Committed(1, None),
            SpeechStarted(2, 20_000),
            Partial(2, "", "b", "en"),
            Final(1, "a", "en"),
            SpeechStopped(2, 40_000),
            Committed(2, 1),
            Final(2, "b", "en"),
        )
        heard = [talk.hears_next() for _ in range(12)]
        ids = [message.get("item_id") or message["item"]["id"] for message in heard]
        assert ids == [ITEM_1] * 5 + [ITEM_2] * 2 + [ITEM_1] + [ITEM_2] * 4
        talk.is_silent()

    def test_old_items_are_forgotten(self) -> None:
        talk = Conversation()
        for item in range(1, 1000):
            talk.tells(Committed(item, item - 1 or None), Final(item, "x", "en"))
        assert len(talk.protocol._item_ids) == 1  # type: ignore[attr-defined]

    def test_event_ids_are_unique(self) -> None:
        talk = Conversation(greeted=False)
        talk.tells(*[Partial(1, "", str(count), "en") for count in range(100)])
        assert len({talk.hears_next()["event_id"] for _ in range(101)}) == 101

    def test_emotion_can_be_left_out(self) -> None:
        talk = Conversation(emotion=None)
        talk.tells(Partial(1, "", "a", "en"), Final(1, "a", "en"))
        assert "emotion" not in talk.hears(f"{TRANSCRIPTION}.text")
        assert "emotion" not in talk.hears(f"{TRANSCRIPTION}.completed")

    def test_chinese_is_sent_as_it_is_and_compact(self) -> None:
        handshake = Handshake({})
        protocol = load_protocol("dashscope_realtime")(handshake, lambda _: capabilities(), lambda prefix: f"{prefix}1")
        protocol.messages_to_send()
        protocol.send_event(Finished("今天"))
        assert protocol.messages_to_send() == ['{"event_id":"event_1","type":"session.finished","transcript":"今天"}']

    def test_half_a_surrogate_pair_from_an_engine_can_be_sent(self) -> None:
        talk = Conversation()
        talk.tells(Final(1, "half \ud83d", "en"))
        talk.hears(f"{TRANSCRIPTION}.completed", transcript="half ?")


class TestWords:
    FINAL = Final(
        item=1,
        text="hello you",
        language="en",
        words=(Word("hello", 16_000, 24_000, 0.75), Word("you", 24_000, 28_015)),
        confidence=0.5,
    )

    def test_times_and_confidence_are_sent_when_asked_for(self) -> None:
        talk = Conversation()
        talk.updates(words=True)
        talk.hears_session()
        talk.tells(self.FINAL)
        message = talk.hears(f"{TRANSCRIPTION}.completed", confidence=0.5)
        assert message["words"] == [
            {"text": "hello", "begin_time": 1000, "end_time": 1500, "confidence": 0.75},
            {"text": "you", "begin_time": 1500, "end_time": 1750},
        ]

    def test_an_engine_without_them_sends_none(self) -> None:
        talk = Conversation()
        talk.updates(words=True)
        talk.hears_session()
        talk.tells(Final(1, "hello", "en"))
        assert not {"words", "confidence"} & talk.hears(f"{TRANSCRIPTION}.completed").keys()

    def test_confidence_is_not_sent_unasked(self) -> None:
        talk = Conversation()
        talk.tells(Final(1, "hello", "en", confidence=0.5))
        assert "confidence" not in talk.hears(f"{TRANSCRIPTION}.completed")


class TestFinished:
    def test_the_client_is_given_time_to_close_first(self) -> None:
        talk = Conversation(finish_grace_s=7.5)
        talk.says("session.finish")
        talk.protocol.commands_received()
        talk.tells(Finished("one"))
        talk.hears("session.finished", transcript="one")
        assert talk.close is not None
        assert (talk.close.code, talk.close.grace_s) == (1000, 7.5)

    def test_nothing_follows(self) -> None:
        talk = Conversation()
        talk.tells(Finished(""))
        talk.hears("session.finished")
        talk.tells(Partial(1, "", "a", "en"), Closing(errors.InternalError("late")))
        talk.says("session.update", session={})
        talk.is_silent()


class TestErrors:
    EXPECTED = (
        (errors.InvalidEvent("m"), "invalid_request_error", "invalid_event", 1008),
        (errors.InvalidValue("m", param="p"), "invalid_request_error", "invalid_value", 1008),
        (errors.InvalidAudio("m"), "invalid_request_error", "invalid_audio", 1008),
        (errors.UnknownModel("m"), "invalid_request_error", "Model.NotExist", 1008),
        (errors.Unauthorized("m"), "invalid_request_error", "InvalidApiKey", 1008),
        (errors.Forbidden("m"), "invalid_request_error", "AccessDenied", 1008),
        (errors.TooLarge("m"), "invalid_request_error", "InvalidParameter", 1009),
        (errors.IdleTimeout("m"), "invalid_request_error", "idle_timeout", 1008),
        (errors.Overloaded("m"), "server_error", "Throttling", 1013),
        (errors.ShuttingDown("m"), "server_error", "ServiceUnavailable", 1001),
        (errors.EngineNotReady("m"), "server_error", "ServiceUnavailable", 1013),
        (errors.EngineTimeout("m"), "server_error", "InternalError", 1011),
        (errors.EngineCrashed("m"), "server_error", "InternalError", 1011),
        (errors.EngineError("m"), "server_error", "InternalError", 1011),
        (errors.InternalError("m"), "server_error", "InternalError", 1011),
    )

    @pytest.mark.parametrize(("error", "type", "code", "close_code"), EXPECTED, ids=str)
    @pytest.mark.parametrize("finishing", [False, True])
    def test_closing_says_why_and_closes(
        self, error: errors.AsrServerError, type: str, code: str, close_code: int, finishing: bool
    ) -> None:
        talk = Conversation()
        if finishing:
            talk.says("session.finish")
            talk.protocol.commands_received()
        talk.tells(Closing(error))
        fields = {"type": type, "code": code, "message": "m", "param": error.param, "event_id": None}
        assert payload(talk.hears_next()) == {"type": "error", "error": fields}
        assert talk.close is not None
        assert (talk.close.code, talk.close.reason, talk.close.grace_s) == (close_code, code, 0)
        talk.is_silent()

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (errors.EngineError("m"), "audio_unintelligible"),
            (errors.EngineTimeout("m"), "InternalError"),
            (errors.EngineCrashed("m"), "InternalError"),
            (errors.EngineNotReady("m"), "ServiceUnavailable"),
            (errors.Overloaded("m"), "Throttling"),
            (errors.InvalidAudio("m", param="audio"), "invalid_audio"),
        ],
        ids=str,
    )
    def test_a_failed_utterance_has_a_code_and_the_session_lives(self, error: errors.AsrServerError, code: str) -> None:
        talk = Conversation(max_errors=1)
        talk.tells(UtteranceFailed(1, error))
        talk.hears(f"{TRANSCRIPTION}.failed", error={"code": code, "message": "m", "param": error.param})
        talk.is_alive()

    def test_failures_are_told_even_after_finish(self) -> None:
        talk = Conversation()
        talk.says("session.finish")
        talk.protocol.commands_received()
        talk.tells(UtteranceFailed(1, errors.EngineTimeout("m")), Finished(""))
        talk.hears(f"{TRANSCRIPTION}.failed")
        talk.hears("session.finished")

    def test_every_error_of_the_server_has_its_own_line(self) -> None:
        def subclasses(base: type[errors.AsrServerError]) -> set[type[errors.AsrServerError]]:
            own = {each for each in base.__subclasses__() if each.__module__ == errors.__name__}
            return own.union(*map(subclasses, own))

        of_recordings = {errors.MediaError, errors.TooLong, errors.SourceRefused, errors.SourceUnreachable}
        assert subclasses(errors.AsrServerError) - WIRE_ERRORS.keys() == {errors.InternalError} | of_recordings

    def test_an_error_without_a_line_looks_like_its_base(self) -> None:
        class Refused(errors.Overloaded):
            pass

        talk = Conversation()
        talk.tells(Closing(Refused("m")))
        talk.hears("error")
        assert talk.close is not None
        assert talk.close.code == 1013
