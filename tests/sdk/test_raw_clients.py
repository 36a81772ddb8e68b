"""Programs that do without an SDK: the sequences of messages that they are known to send."""

import asyncio

import pytest

from support import speech
from support.invariants import COMPLETED, FAILED, assert_finished, assert_invariants
from support.process import ServerProcess
from support.raw_client import RawClient, raw_client
from support.sdk_client import MODEL

CLIP = speech.clip("followme-status")
VENDOR_HEADERS = {"Authorization": "Bearer sk-test", "OpenAI-Beta": "realtime=v1"}
VENDOR_SESSION = {
    "modalities": ["text"],
    "input_audio_format": "pcm",
    "sample_rate": 16_000,
    "input_audio_transcription": {"language": "en"},
}


@pytest.fixture
def url(server: ServerProcess) -> str:
    return f"{server.url}?model={MODEL}"


def assert_recognised(client: RawClient) -> None:
    assert_finished(client.frames, audio_ms=CLIP.seconds * 1000)
    completed = [frame["transcript"] for frame in client.frames if frame["type"] == COMPLETED]
    assert speech.wer(CLIP.text, " ".join(completed)) < 0.5


async def test_vendor_sample_with_vad(url: str) -> None:
    """Updates as soon as the socket is open, reads the transcript of `session.finished`, closes with 1000."""
    turn_detection = {"type": "server_vad", "threshold": 0.0, "silence_duration_ms": 400}
    async with raw_client(url, additional_headers=VENDOR_HEADERS) as client:
        await client.send(
            "session.update", event_id="event_1", session=VENDOR_SESSION | {"turn_detection": turn_detection}
        )
        await client.append(CLIP.pcm16)
        await client.send("session.finish", event_id="event_2")
        finished = await client.read_until("session.finished")
        await client.socket.close(1000, "ASR finished")
    assert_recognised(client)
    assert speech.wer(CLIP.text, finished["transcript"]) < 0.5


async def test_vendor_sample_by_hand(url: str) -> None:
    """Sends commit and finish at once, without waiting for anything."""
    async with raw_client(url, additional_headers=VENDOR_HEADERS) as client:
        await client.send("session.update", event_id="event_1", session=VENDOR_SESSION | {"turn_detection": None})
        await client.append(CLIP.pcm16)
        await client.send("input_audio_buffer.commit", event_id="event_2")
        await client.send("session.finish", event_id="event_3")
        await client.read_until("session.finished")
    assert_recognised(client)


async def test_vendor_notice_without_event_id(url: str) -> None:
    async with raw_client(url, additional_headers=VENDOR_HEADERS) as client:
        await client.socket.send('{"type":"session.finish"}')
        await client.read_until("session.finished")
    assert_finished(client.frames)


async def test_java_sdk_closes_after_finished(url: str) -> None:
    """Throws if the server's close arrives before its own."""
    async with raw_client(url, additional_headers=VENDOR_HEADERS) as client:
        await client.read_until("session.created")
        await client.send("session.update", session=VENDOR_SESSION | {"input_audio_transcription": {"model": None}})
        await client.append(CLIP.pcm16, 1024)
        await client.send("session.finish")
        await client.read_until("session.finished")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await client.socket.recv()
        await client.socket.close(1000, "bye")
    assert client.socket.close_code == 1000
    assert_recognised(client)


async def qwen_code(client: RawClient, pcm: bytes) -> None:
    """Wait for created before the update and for updated before the audio; always commit and finish."""
    await client.read_until("session.created")
    options = {"language": "en", "corpus_text": "qwen-code, refactoring"}
    await client.send(
        "session.update", session=VENDOR_SESSION | {"input_audio_transcription": options, "turn_detection": None}
    )
    updated = await client.read_until("session.updated")
    assert updated["session"]["input_audio_transcription"]["corpus"]["text"] == "qwen-code, refactoring"
    await client.append(pcm)
    await client.send("input_audio_buffer.commit")
    await client.send("session.finish")
    await client.read_until("session.finished")


async def test_qwen_code(url: str) -> None:
    async with raw_client(url, additional_headers={"Authorization": "Bearer sk-test"}) as client:
        await qwen_code(client, CLIP.pcm16)
    assert_recognised(client)
    assert not {"error", FAILED} & {frame["type"] for frame in client.frames}


async def test_qwen_code_without_a_word(url: str) -> None:
    """The vendor answers an empty commit with an error, and so do we, before the session is finished."""
    async with raw_client(url, additional_headers={"Authorization": "Bearer sk-test"}) as client:
        await qwen_code(client, b"")
    assert_finished(client.frames)
    kinds = [frame["type"] for frame in client.frames]
    assert kinds == ["session.created", "session.updated", "error", "session.finished"]


async def test_livekit(url: str) -> None:
    """Gives the least it can in `session.update`; only `session.finished` is a clean end for it."""
    session = {"input_audio_format": "pcm", "sample_rate": 16_000, "input_audio_transcription": {}}
    async with raw_client(f"{url}&extra=1", additional_headers={"Authorization": "Bearer sk-test"}) as client:
        await client.send("session.update", session=session | {"turn_detection": {"type": "server_vad"}})
        await client.append(CLIP.pcm16, 1600)
        await client.send("session.finish")
        await client.read_until("session.finished")
    assert_recognised(client)


async def test_openless(url: str) -> None:
    """Starts its audio after `session.updated` and joins the finals; any error is fatal for it."""
    async with raw_client(url) as client:
        await client.send("session.update", session=VENDOR_SESSION | {"turn_detection": {"type": "server_vad"}})
        await client.read_until("session.updated")
        await client.append(speech.conversation().pcm16)
        await client.send("session.finish")
        await client.read_until("session.finished")
    assert_finished(client.frames)
    joined = " ".join(frame["transcript"] for frame in client.frames if frame["type"] == COMPLETED)
    assert speech.wer(speech.conversation().text, joined) < 0.5


async def test_15_mib_in_one_append(url: str) -> None:
    """The largest append there is, silence for the most part, with speech at its end."""
    audio = bytes(15 * 1024 * 1024 - len(CLIP.pcm16)) + CLIP.pcm16
    async with raw_client(url, max_size=None) as client:
        await client.append(audio, len(audio))
        await client.send("session.finish")
        await client.read_until("session.finished")
    assert_finished(client.frames, audio_ms=len(audio) / 32)
    completed = [frame["transcript"] for frame in client.frames if frame["type"] == COMPLETED]
    assert speech.wer(CLIP.text, " ".join(completed)) < 0.5


async def test_more_than_15_mib_is_refused_and_the_session_lives(url: str) -> None:
    async with raw_client(url, max_size=None) as client:
        await client.append(bytes(15 * 1024 * 1024 + 2), 10**9)
        error = (await client.read_until("error"))["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_audio")
        await client.append(CLIP.pcm16)
        await client.send("session.finish")
        await client.read_until("session.finished")
    assert_recognised(client)


async def test_binary_messages_are_refused_and_the_session_lives(url: str) -> None:
    async with raw_client(url) as client:
        await client.socket.send(CLIP.pcm16[:3200])
        assert (await client.read_until("error"))["error"]["type"] == "invalid_request_error"
        await client.append(CLIP.pcm16)
        await client.send("session.finish")
        await client.read_until("session.finished")
    assert_invariants(client.frames)
    assert_recognised(client)
