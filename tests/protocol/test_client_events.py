"""protocol.md's sections on audio, commit, clear, finish and the events this model has no use for."""

import base64

import pytest

from qwen3_asr_server.errors import EmptyCommit, InvalidAudio
from qwen3_asr_server.messages import AppendBytes, Clear, Commit, Finish, Finished, Rejected
from support.conversation import Conversation

AUDIO = bytes(range(256)) * 12 + b"\x01"
"""An odd number of bytes: packets need not end where samples do."""


def base64_of(audio: bytes) -> str:
    return base64.b64encode(audio).decode("ascii")


class TestAppend:
    @pytest.mark.parametrize("length", [1, 2, 3, 928, 1024, 3200, 6400, 32000])
    def test_audio_of_any_length_becomes_a_command_without_an_answer(self, length: int) -> None:
        audio = (AUDIO * 11)[:length]
        talk = Conversation()
        talk.says("input_audio_buffer.append", event_id="event_a", audio=base64_of(audio))
        talk.orders(AppendBytes(audio, "event_a"))
        talk.is_silent()

    def test_event_id_may_be_missing(self) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.append", audio=base64_of(AUDIO))
        talk.orders(AppendBytes(AUDIO))

    def test_no_audio_is_no_command(self) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.append", audio="")
        talk.is_silent()

    def test_line_breaks_inside_base64_are_read(self) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.append", audio=base64.encodebytes(AUDIO).decode("ascii").replace("\n", "\r\n"))
        talk.orders(AppendBytes(AUDIO))

    @pytest.mark.parametrize("audio", ["AAA", "A===", "AA=A", "!!!!", "AA-_", "ÄÄÄÄ", "\ud800AAA", "\0", "AAA A\n?"])
    def test_bad_base64_is_refused(self, audio: str) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.append", event_id="event_a", audio=audio)
        talk.hears_error("invalid_audio", param="audio", event_id="event_a")
        talk.is_alive()

    @pytest.mark.parametrize("audio", [None, 7, True, [], {}, ["AAAA"]])
    def test_audio_must_be_a_string(self, audio: object) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.append", audio=audio)
        talk.hears_error("invalid_audio", param="audio")
        talk.is_alive()

    def test_audio_must_be_there(self) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.append")
        talk.hears_error("invalid_audio", param="audio")

    def test_the_limit_is_inclusive(self) -> None:
        talk = Conversation(max_append_bytes=100)
        talk.says("input_audio_buffer.append", audio=base64_of(bytes(100)))
        talk.orders(AppendBytes(bytes(100)))
        talk.says("input_audio_buffer.append", event_id="event_b", audio=base64_of(bytes(101)))
        error = talk.hears_error("invalid_audio", param="audio", event_id="event_b")
        assert error["message"] == "One append holds at most 100 bytes of audio."
        talk.is_alive()

    def test_fifteen_mebibytes_are_taken(self) -> None:
        audio = bytes(15 * 1024 * 1024)
        talk = Conversation()
        talk.says("input_audio_buffer.append", audio=base64_of(audio))
        talk.orders(AppendBytes(audio))

    def test_audio_the_session_cannot_read_is_refused_and_the_session_lives(self) -> None:
        talk = Conversation()
        talk.tells(Rejected(InvalidAudio("An opus packet could not be decoded.", param="audio"), "event_a"))
        error = talk.hears_error("invalid_audio", param="audio", event_id="event_a")
        assert error["message"] == "An opus packet could not be decoded."
        talk.is_alive()


class TestCommitAndClear:
    def test_commit_is_a_command(self) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.commit", event_id="event_c")
        talk.orders(Commit("event_c"))
        talk.is_silent()

    def test_clear_is_a_command(self) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.clear", event_id="event_c")
        talk.orders(Clear("event_c"))
        talk.is_silent()

    def test_an_empty_commit_gets_the_vendors_words(self) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.commit", event_id="event_c")
        talk.orders(Commit("event_c"))
        talk.tells(Rejected(EmptyCommit("nothing to commit"), "event_c"))
        error = talk.hears_error("input_audio_buffer_commit_empty", event_id="event_c")
        assert error["message"] == "Error committing input audio buffer, maybe no invalid audio stream."
        talk.is_alive()


class TestFinish:
    def test_finish_is_a_command_once(self) -> None:
        talk = Conversation()
        talk.says("session.finish")
        talk.says("session.finish")
        talk.orders(Finish())
        talk.is_silent()

    @pytest.mark.parametrize(
        "message",
        [
            '{"type":"input_audio_buffer.append","audio":"AAAA"}',
            '{"type":"input_audio_buffer.append","audio":"?"}',
            '{"type":"input_audio_buffer.commit"}',
            '{"type":"input_audio_buffer.clear"}',
            '{"type":"session.update","session":{"turn_detection":null}}',
            '{"type":"session.update","session":7}',
            '{"type":"response.create"}',
            '{"type":"no.such.event"}',
            "not json",
            b"\x00",
        ],
    )
    def test_what_comes_after_it_is_neither_obeyed_nor_an_error(self, message: str | bytes) -> None:
        talk = Conversation(max_errors=1)
        before = talk.protocol.config
        talk.says("session.finish")
        talk.orders(Finish())
        talk.says_raw(message)
        talk.is_silent()
        assert talk.protocol.config == before
        assert talk.close is None

    def test_a_late_rejection_is_not_sent(self) -> None:
        talk = Conversation(max_errors=1)
        talk.says("session.finish")
        talk.orders(Finish())
        talk.tells(Rejected(EmptyCommit("nothing to commit"), "event_c"))
        talk.is_silent()
        assert talk.close is None

    def test_an_earlier_rejection_is_sent_before_the_end(self) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.commit")
        talk.tells(Rejected(EmptyCommit("nothing to commit")))
        talk.says("session.finish")
        talk.tells(Finished(""))
        talk.hears_error("input_audio_buffer_commit_empty")
        talk.hears("session.finished")


class TestOtherEvents:
    @pytest.mark.parametrize(
        "type", ["response.create", "response.cancel", "conversation.item.create", "input_image_buffer.append"]
    )
    def test_what_other_models_offer_is_refused_and_the_session_lives(self, type: str) -> None:
        talk = Conversation()
        talk.says(type, event_id="event_r", response={"instructions": None})
        error = talk.hears_error("invalid_event", param="type", event_id="event_r")
        assert error["message"] == f"'{type}' is not supported: this model transcribes."
        talk.is_alive()

    @pytest.mark.parametrize("type", ["", "session.close", "SESSION.FINISH", "x" * 100_000])
    def test_an_unknown_type_is_refused_and_the_session_lives(self, type: str) -> None:
        talk = Conversation()
        talk.says(type)
        error = talk.hears_error("invalid_event", param="type")
        assert error["message"].startswith("Unknown event type: '")
        assert len(error["message"]) < 100
        talk.is_alive()


class TestNoEvent:
    @pytest.mark.parametrize(
        ("message", "text"),
        [
            (b"", "Binary messages are not supported. Send events as JSON text."),
            (b'{"type":"session.finish"}', "Binary messages are not supported. Send events as JSON text."),
            (b"\xff\xfe", "Binary messages are not supported. Send events as JSON text."),
            ("", "The message is not valid JSON."),
            ("{", "The message is not valid JSON."),
            ("\ufeff{}", "The message is not valid JSON."),
            ("{} {}", "The message is not valid JSON."),
            ('{"type":"session.finish","x":NaN}', "The message is not valid JSON."),
            ('{"type":"session.finish","x":-Infinity}', "The message is not valid JSON."),
            ('{"type":"session.finish","x":1e999}', "A number in the message is out of range."),
            ('{"type":"session.finish","x":' + "9" * 5000 + "}", "A number in the message is out of range."),
            ("[" * 100_000, "The message is nested too deeply."),
            ('{"a":' * 50_000, "The message is nested too deeply."),
            ("null", "The message is not a JSON object."),
            ("7", "The message is not a JSON object."),
            ('"session.finish"', "The message is not a JSON object."),
            ('[{"type":"session.finish"}]', "The message is not a JSON object."),
        ],
    )
    def test_it_is_answered_and_the_session_lives(self, message: str | bytes, text: str) -> None:
        talk = Conversation()
        talk.says_raw(message)
        assert talk.hears_error("invalid_event")["message"] == text
        talk.is_alive()

    @pytest.mark.parametrize(
        "body", ["{}", '{"type":null}', '{"type":7}', '{"type":["session.finish"]}', '{"Type":""}']
    )
    def test_the_type_must_be_a_string(self, body: str) -> None:
        talk = Conversation()
        talk.says_raw(body)
        talk.hears_error("invalid_event", param="type")
        talk.is_alive()

    def test_an_event_may_be_thirty_two_levels_deep(self) -> None:
        talk = Conversation()
        for levels, code in ((31, None), (32, "invalid_event")):
            nested = '{"a":' * levels + "1" + "}" * levels
            talk.says_raw('{"type":"session.update","event_id":"event_d","session":' + nested + "}")
            if code is None:
                talk.hears_session()
            else:
                talk.hears_error(code, event_id="event_d")
        talk.is_alive()

    def test_a_key_that_comes_twice_means_the_last(self) -> None:
        talk = Conversation()
        talk.says_raw('{"type":"session.finish","type":"input_audio_buffer.commit"}')
        talk.orders(Commit())

    @pytest.mark.parametrize("filler", ["[],", "{},", "0,"])
    def test_many_small_values_are_refused_before_they_fill_the_memory(self, filler: str) -> None:
        talk = Conversation()
        talk.says_raw('{"type":"input_audio_buffer.append","audio":[' + filler * 200_000 + "0]}")
        talk.hears_error("InvalidParameter")
        talk.is_alive()


class TestEventId:
    @pytest.mark.parametrize("event_id", ["event_1", "", "ü" * 256])
    def test_a_string_comes_back_in_the_error(self, event_id: str) -> None:
        talk = Conversation()
        talk.says("no.such.event", event_id=event_id)
        talk.hears_error("invalid_event", param="type", event_id=event_id)

    @pytest.mark.parametrize("event_id", [7, None, True, [], {}, "x" * 257])
    def test_anything_else_does_not(self, event_id: object) -> None:
        talk = Conversation()
        talk.says("no.such.event", event_id=event_id)
        talk.hears_error("invalid_event", param="type")

    def test_half_a_surrogate_pair_can_still_be_sent(self) -> None:
        talk = Conversation()
        talk.says_raw('{"type":"no.such.event","event_id":"\\ud800"}')
        talk.hears_error("invalid_event", param="type", event_id="?")
        talk.updates(extra="\udfff")
        assert talk.hears_session()["extra"] == "?"

    def test_one_id_may_serve_twice(self) -> None:
        talk = Conversation()
        for _ in range(2):
            talk.says("input_audio_buffer.commit", event_id="event_same")
        talk.orders(Commit("event_same"), Commit("event_same"))
        talk.is_silent()


class TestTooManyErrors:
    def test_a_row_of_them_ends_the_connection(self) -> None:
        talk = Conversation(max_errors=3)
        for _ in range(3):
            assert talk.close is None
            talk.says_raw("nonsense")
            talk.hears_error("invalid_event")
        assert talk.close is not None
        assert (talk.close.code, talk.close.reason, talk.close.grace_s) == (1008, "too many errors", 0)
        talk.says_raw("nonsense")
        talk.tells(Finished(""))
        talk.is_silent()

    def test_one_good_event_begins_a_new_row(self) -> None:
        talk = Conversation(max_errors=2)
        for _ in range(5):
            talk.says_raw("nonsense")
            talk.hears_error("invalid_event")
            talk.says("input_audio_buffer.append", audio="")
        assert talk.close is None

    def test_an_event_that_the_session_rejects_is_not_good(self) -> None:
        talk = Conversation(max_errors=3)
        for _ in range(3):
            assert talk.close is None
            talk.says("input_audio_buffer.commit")
            talk.tells(Rejected(EmptyCommit("nothing to commit")))
            talk.hears_error("input_audio_buffer_commit_empty")
        assert talk.close is not None
