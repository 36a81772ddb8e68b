"""`OmniRealtimeConversation`: how a session ends, and what the SDK makes of it."""

import inspect
import time

import pytest
from dashscope.audio.qwen_omni import OmniRealtimeConversation

from support import speech
from support.invariants import COMPLETED, assert_finished, assert_invariants
from support.process import ServerProcess
from support.sdk_client import TEXT_ONLY, conversation, send

pytestmark = pytest.mark.sdk

COMMIT_ERROR = "Error committing input audio buffer, maybe no invalid audio stream."
CLIP = speech.clip("queue-thankyou")
FAST_S = 2.0

RAISES_ON_ERROR = "_disconnect_error" in inspect.getsource(OmniRealtimeConversation.__init__)
"""Newer SDKs turn an `error` that comes while `end_session` waits into an exception."""


def end_in(client: OmniRealtimeConversation) -> float:
    """End the session and return how long that took, in seconds."""
    started = time.monotonic()
    client.end_session()
    return time.monotonic() - started


def test_end_session_at_once_is_fast(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        assert end_in(client) < FAST_S
    assert [frame["type"] for frame in recorder.frames] == ["session.created", "session.finished"]


@pytest.mark.parametrize("vad", [True, False], ids=["vad", "manual"])
def test_end_session_after_silence_is_fast(server: ServerProcess, vad: bool) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=vad)
        send(client, bytes(5 * 32_000))
        assert end_in(client) < FAST_S
    assert_finished(recorder.frames)
    assert not any(recorder.transcripts)


@pytest.mark.parametrize("vad", [True, False], ids=["vad", "manual"])
def test_completed_comes_before_end_session_returns(server: ServerProcess, vad: bool) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=vad)
        send(client, CLIP.pcm16)
        if not vad:
            client.commit()
        client.end_session()
        assert recorder.frames[-1]["type"] == "session.finished"
        assert len(recorder.all_of(COMPLETED)) == 1
        assert recorder.transcripts[0]
    assert_finished(recorder.frames)


def test_end_session_does_not_raise_after_a_reported_commit_error(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        client.commit()
        error = recorder.wait_for("error")["error"]
        client.end_session()
    assert_finished(recorder.frames)
    assert error["message"] == COMMIT_ERROR
    assert (error["type"], error["code"]) == ("invalid_request_error", "input_audio_buffer_commit_empty")


def test_commit_error_names_the_event(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        client.send_raw('{"type": "input_audio_buffer.commit", "event_id": "mine"}')
        assert recorder.wait_for("error")["error"]["event_id"] == "mine"
        client.end_session()


def test_commit_in_vad_mode_is_an_error_and_the_session_goes_on(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.commit()
        assert recorder.wait_for("error")["error"]["message"] == COMMIT_ERROR
        send(client, CLIP.pcm16)
        client.end_session()
    assert_finished(recorder.frames)
    assert recorder.transcripts[0]


def test_empty_commit_and_end_session_back_to_back_never_hang(server: ServerProcess) -> None:
    """The error overtakes `session.finished`, so an SDK that looks for errors may report it."""
    outcome = "ended"
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        client.commit()
        started = time.monotonic()
        try:
            client.end_session()
        except RuntimeError as error:
            outcome = str(error)
        assert time.monotonic() - started < FAST_S
    assert_invariants(recorder.frames)
    assert recorder.wait_for("error")["error"]["message"] == COMMIT_ERROR
    assert outcome == "ended" or (RAISES_ON_ERROR and COMMIT_ERROR in outcome)


def test_no_error_between_finish_and_finished(server: ServerProcess) -> None:
    """What comes after `session.finish` is ignored: any error here would become an exception in the SDK."""
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        send(client, CLIP.pcm16)
        client.commit()
        client.end_session_async()
        client.commit()
        client.append_audio("not base64!")
        client.send_raw("not even JSON")
        client.end_session_async()
        recorder.wait_for("session.finished")
    assert_finished(recorder.frames)
    assert not recorder.all_of("error")
    assert len(recorder.all_of(COMPLETED)) == 1


def test_server_leaves_the_socket_open_after_finished(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.end_session()
        assert recorder.stays_open(3)
        started = time.monotonic()
        client.close()
        # The SDK waits three seconds for an answer to its close frame.
        assert time.monotonic() - started < FAST_S


def test_close_without_end_session_harms_nobody(server: ServerProcess) -> None:
    with conversation(server.url) as (client, _):
        send(client, CLIP.pcm16)
    with conversation(server.url) as (client, recorder):
        send(client, CLIP.pcm16)
        client.end_session()
    assert_finished(recorder.frames)
    assert recorder.transcripts[0]


def test_wrong_key_is_a_refused_connection(guarded_server: ServerProcess) -> None:
    with pytest.raises(TimeoutError), conversation(guarded_server.url, "sk-wrong"):
        pass


def test_right_key_opens(guarded_server: ServerProcess) -> None:
    with conversation(guarded_server.url, "sk-0123456789") as (client, recorder):
        assert recorder.wait_for("session.created")
        client.end_session()
