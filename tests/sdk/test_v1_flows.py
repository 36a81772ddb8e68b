"""`OmniRealtimeConversation`: everything a program for the vendor's service may say, and what comes back."""

import base64
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import soxr
from dashscope.audio.qwen_omni.omni_realtime import TranscriptionParams

from support import speech
from support.audio_files import ogg_opus, opus_packets, wav_bytes
from support.invariants import TEXT, Frame, assert_finished, kinds_of, transcripts
from support.process import ServerProcess
from support.sdk_client import TEXT_ONLY, Recorder, conversation, send

pytestmark = pytest.mark.sdk

UTTERANCE = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.created",
    "conversation.item.input_audio_transcription.completed",
]
MANUAL_ITEM = UTTERANCE[2:]
OPENING = ["session.created", "session.updated"]

CLIP = speech.clip("followme-status")
NARROW_CLIP = speech.clip("queue-quantity1")
"""One that the embedded engine understands without the upper half of its spectrum too; there are few."""
WORST_WER = 0.5
"""The embedded engine on a single clip. Its true error rate is measured elsewhere; here real words must come."""


def recognised(recorder: Recorder, text: str = CLIP.text) -> bool:
    return speech.wer(text, " ".join(recorder.transcripts)) <= WORST_WER


def transcription(recorder: Recorder) -> Any:
    return recorder.wait_for("session.updated")["session"]["input_audio_transcription"]


def times(frames: Sequence[Frame]) -> list[int]:
    """Return all starts and ends of speech, in ms."""
    return [frame[name] for frame in frames for name in ("audio_start_ms", "audio_end_ms") if name in frame]


@pytest.fixture(scope="module")
def conversation_frames(server: ServerProcess) -> Sequence[Frame]:
    """What the server says to the whole conversation, sent at once in packets of 100 ms."""
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, transcription_params=TranscriptionParams(language="en"))
        send(client, speech.conversation().pcm16)
        client.end_session()
    return recorder.frames


def test_vad_flow(conversation_frames: Sequence[Frame]) -> None:
    assert_finished(conversation_frames, audio_ms=speech.conversation().seconds * 1000)
    assert kinds_of(conversation_frames)[:2] == OPENING
    finals = transcripts(conversation_frames)
    assert len(finals) == len(speech.conversation_turns())
    assert speech.wer(speech.conversation().text, " ".join(finals)) <= WORST_WER


def test_vad_flow_gives_every_item_its_events_in_order(conversation_frames: Sequence[Frame]) -> None:
    for item in {frame["item_id"] for frame in conversation_frames if frame["type"] == UTTERANCE[0]}:
        mine = [
            frame for frame in conversation_frames if item in (frame.get("item_id"), frame.get("item", {}).get("id"))
        ]
        assert kinds_of(mine) == UTTERANCE


def test_vad_flow_times_are_those_of_the_speech(conversation_frames: Sequence[Frame]) -> None:
    spoken = [1000 * at for turn in speech.conversation_turns() for at in (turn.start_s, turn.end_s)]
    assert times(conversation_frames) == pytest.approx(spoken, abs=400)


def test_text_appears_while_speech_runs(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY)
        send(client, CLIP.pcm16 + bytes(32_000), live=True)
        client.end_session()
    assert_finished(recorder.frames)
    kinds = [frame["type"] for frame in recorder.frames]
    assert TEXT in kinds[: kinds.index(UTTERANCE[1])]
    assert any(frame["text"] for frame in recorder.all_of(TEXT))


def test_manual_flow(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        for clip in (CLIP, speech.clip("queue-thankyou")):
            send(client, clip.pcm16)
            client.commit()
        client.end_session()
    assert_finished(recorder.frames)
    assert sorted(kinds_of(recorder.frames)) == sorted([*OPENING, *MANUAL_ITEM, *MANUAL_ITEM, "session.finished"])
    assert recorder.wait_for("session.updated")["session"]["turn_detection"] is None
    first, second = recorder.transcripts
    assert speech.wer(CLIP.text, first) <= WORST_WER
    assert speech.wer("Thank you for your patience", second) <= WORST_WER


def test_manual_flow_finish_recognises_what_was_not_committed(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        send(client, CLIP.pcm16)
        client.end_session()
    assert_finished(recorder.frames)
    assert recognised(recorder)


def test_manual_flow_of_a_whole_wav_file_in_one_append(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        client.append_audio(base64.b64encode(speech.CONVERSATION_WAV.read_bytes()).decode())
        client.commit()
        client.end_session()
    assert_finished(recorder.frames)
    assert len(recorder.transcripts) == 1
    assert recognised(recorder, speech.conversation().text)


def manual_transcripts(server: ServerProcess, params: TranscriptionParams, items: Sequence[bytes]) -> list[str]:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False, transcription_params=params)
        for item in items:
            send(client, item)
            client.commit()
        client.end_session()
    assert_finished(recorder.frames)
    assert not recorder.all_of("error")
    return recorder.transcripts


def test_manual_flow_of_one_wav_stream_with_two_commits(server: ServerProcess) -> None:
    narrow = soxr.resample(np.concatenate([NARROW_CLIP.samples, NARROW_CLIP.samples]), 16_000, 8_000)
    file = wav_bytes(narrow, 8_000)
    middle = len(file) - len(narrow)  # two bytes a sample: the second half is as many bytes as there are samples
    in_file = manual_transcripts(server, TranscriptionParams(), [file[:middle], file[middle:]])
    pcm = speech.pcm16(narrow)
    bare = manual_transcripts(
        server, TranscriptionParams(sample_rate=8_000), [pcm[: len(pcm) // 2], pcm[len(pcm) // 2 :]]
    )
    assert in_file == bare
    assert all(speech.wer(NARROW_CLIP.text, text) <= WORST_WER for text in in_file)


@pytest.mark.parametrize("announced", ["opus", "pcm"])
def test_manual_flow_of_one_ogg_stream_with_two_commits(server: ServerProcess, announced: str) -> None:
    silence = np.zeros(16_000, np.float32)
    stream = ogg_opus(np.concatenate([CLIP.samples, silence, CLIP.samples]), page_ms=100)
    pages = [found.start() for found in re.finditer(b"OggS", stream)]
    at_s = CLIP.seconds + 0.5
    middle = pages[2 + round(at_s * 10)] + 5  # within a page, in the silence; two pages are headers
    params = TranscriptionParams(input_audio_format=announced)
    texts = manual_transcripts(server, params, [stream[:middle], stream[middle:]])
    assert len(texts) == 2
    assert all(speech.wer(CLIP.text, text) <= WORST_WER for text in texts)


def test_update_session_without_parameters(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY)
        session = recorder.wait_for("session.updated")["session"]
        send(client, CLIP.pcm16)
        client.end_session()
    assert_finished(recorder.frames)
    assert (session["input_audio_format"], session["sample_rate"]) == ("pcm", 16_000)
    assert session["turn_detection"]["threshold"] == 0.2
    assert session["turn_detection"]["silence_duration_ms"] == 800
    assert recognised(recorder)


def test_no_update_session_at_all(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        send(client, CLIP.pcm16)
        client.end_session()
    assert_finished(recorder.frames)
    assert kinds_of(recorder.frames) == ["session.created", *UTTERANCE, "session.finished"]
    assert recognised(recorder)


def test_transcription_switched_off_still_transcribes(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_input_audio_transcription=False)
        assert transcription(recorder) is None
        send(client, CLIP.pcm16)
        client.end_session()
    assert_finished(recorder.frames)
    assert recognised(recorder)


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        (TranscriptionParams(), {}),
        (TranscriptionParams(language="en"), {"language": "en"}),
        (TranscriptionParams(corpus_text="Asterisk, conference"), {"corpus": {"text": "Asterisk, conference"}}),
        (TranscriptionParams(corpus={"text": "a list"}), {"corpus": {"text": "a list"}}),
    ],
    ids=["nothing", "language", "corpus_text", "corpus"],
)
def test_transcription_params_are_accepted_and_shown(
    server: ServerProcess, params: TranscriptionParams, shown: dict[str, Any]
) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, transcription_params=params)
        assert transcription(recorder) == shown
        client.end_session()
    assert_finished(recorder.frames)


def test_context_changes_nothing_with_the_embedded_engine(server: ServerProcess) -> None:
    """It is accepted and shown, as docs/api/dashscope.md says, and the text is the same with and without it."""
    transcripts = []
    for params in (
        TranscriptionParams(language="en"),
        TranscriptionParams(language="en", corpus_text="zebra crossing"),
    ):
        with conversation(server.url) as (client, recorder):
            client.update_session(TEXT_ONLY, transcription_params=params)
            send(client, CLIP.pcm16)
            client.end_session()
        assert_finished(recorder.frames)
        transcripts.append(recorder.transcripts)
    assert server.get("/")["engine"]["context"] is False
    assert transcripts[0] == transcripts[1]
    assert transcripts[0][0]


def test_language_comes_back_in_every_event(server: ServerProcess) -> None:
    """The embedded engine knows English alone: this shows that every event carries a language, not whose it is."""
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, transcription_params=TranscriptionParams(language="en"))
        send(client, CLIP.pcm16)
        client.end_session()
    heard = [frame for frame in recorder.frames if ".input_audio_transcription." in frame["type"]]
    assert heard
    assert [frame.get("language") for frame in heard] == ["en"] * len(heard)


def test_a_language_the_engine_does_not_know_is_refused(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, transcription_params=TranscriptionParams(language="zh"))
        error = recorder.wait_for("error")["error"]
        client.end_session()
    assert_finished(recorder.frames)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert error["param"] == "session.input_audio_transcription.language"


def test_keyword_arguments_pass_through(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(
            TEXT_ONLY,
            voice="Cherry",
            turn_detection_param={"something_new": 7},
            smooth_output=True,
            words=True,
            future_field={"a": [1, 2]},
        )
        session = recorder.wait_for("session.updated")["session"]
        send(client, CLIP.pcm16)
        client.end_session()
    assert_finished(recorder.frames)
    assert session["future_field"] == {"a": [1, 2]}
    assert session["turn_detection"]["something_new"] == 7
    assert not recorder.all_of("error")
    assert recognised(recorder)


def test_turn_detection_parameters_are_shown(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, turn_detection_threshold=0.0, turn_detection_silence_duration_ms=400)
        shown = recorder.wait_for("session.updated")["session"]["turn_detection"]
        client.end_session()
    assert (shown["type"], shown["threshold"], shown["silence_duration_ms"]) == ("server_vad", 0.0, 400)


@pytest.mark.parametrize("vad", [True, False], ids=["vad", "manual"])
def test_pcm_at_8_khz(server: ServerProcess, vad: bool) -> None:
    audio = speech.pcm16(soxr.resample(NARROW_CLIP.samples, 16_000, 8_000))
    with conversation(server.url) as (client, recorder):
        params = TranscriptionParams(sample_rate=8_000)
        client.update_session(TEXT_ONLY, enable_turn_detection=vad, transcription_params=params)
        assert recorder.wait_for("session.updated")["session"]["sample_rate"] == 8_000
        send(client, audio, 1600)
        client.end_session()
    assert_finished(recorder.frames, audio_ms=NARROW_CLIP.seconds * 1000)
    assert recognised(recorder, NARROW_CLIP.text)


@pytest.mark.parametrize("vad", [True, False], ids=["vad", "manual"])
@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_opus_packets(server: ServerProcess, vad: bool, rate: int) -> None:
    packets = opus_packets(soxr.resample(NARROW_CLIP.samples, 16_000, rate), rate)
    with conversation(server.url) as (client, recorder):
        params = TranscriptionParams(input_audio_format="opus", sample_rate=rate)
        client.update_session(TEXT_ONLY, enable_turn_detection=vad, transcription_params=params)
        assert recorder.wait_for("session.updated")["session"]["input_audio_format"] == "opus"
        for packet in packets:
            client.append_audio(base64.b64encode(packet).decode())
        client.end_session()
    assert_finished(recorder.frames)
    assert recognised(recorder, NARROW_CLIP.text)


@pytest.mark.parametrize("packet_bytes", [1000, 10**9], ids=["in pieces", "at once"])
def test_opus_in_an_ogg_stream(server: ServerProcess, packet_bytes: int) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, transcription_params=TranscriptionParams(input_audio_format="opus"))
        send(client, ogg_opus(CLIP.samples), packet_bytes)
        client.end_session()
    assert_finished(recorder.frames)
    assert recognised(recorder)


@pytest.mark.parametrize("packet_bytes", [333, 1024, 32_000, 10**9])
def test_finals_do_not_depend_on_packet_size(
    server: ServerProcess, conversation_frames: Sequence[Frame], packet_bytes: int
) -> None:
    with conversation(server.url) as (client, recorder):
        send(client, speech.conversation().pcm16, packet_bytes)
        client.end_session()
    assert_finished(recorder.frames)
    assert transcripts(recorder.frames) == transcripts(conversation_frames)
    assert times(recorder.frames) == times(conversation_frames)


def test_finals_do_not_depend_on_pacing(server: ServerProcess) -> None:
    audio = CLIP.pcm16 + bytes(32_000)
    with conversation(server.url) as (client, pushed):
        send(client, audio)
        client.end_session()
    with conversation(server.url) as (client, live):
        send(client, audio, live=True)
        client.end_session()
    assert live.transcripts == pushed.transcripts
    assert recognised(live)


def test_clear_forgets_what_was_appended(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        send(client, speech.clip("conf-full").pcm16)
        client.clear_appended_audio()
        recorder.wait_for("input_audio_buffer.cleared")
        send(client, CLIP.pcm16)
        client.commit()
        client.end_session()
    assert_finished(recorder.frames)
    assert recognised(recorder)


def test_methods_for_other_models_do_not_end_the_session(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY)
        client.create_response()
        client.cancel_response()
        client.append_video("")
        client.send_raw('{"type": "conversation.item.create", "item": {}}')
        client.send_raw('{"type": "no.such.event"}')
        recorder.wait_for("error", 5)
        send(client, CLIP.pcm16)
        client.end_session()
    assert_finished(recorder.frames)
    assert {frame["error"]["type"] for frame in recorder.all_of("error")} == {"invalid_request_error"}
    assert recognised(recorder)


def test_session_id_reaches_the_sdk(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        created = recorder.wait_for("session.created")
        client.end_session()
        assert client.get_session_id() == created["session"]["id"]
