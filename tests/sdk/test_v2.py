"""The second generation of the SDK: `Client.audio.realtime`, which is pulled instead of calling back."""

import threading
from collections.abc import Iterator

import dashscope
import pytest
from dashscope.v2.errors import DashScopeError
from dashscope.v2.resources.audio.realtime import RealtimeSession

from support import speech
from support.invariants import COMPLETED, Frame, assert_finished, transcripts
from support.process import ServerProcess
from support.sdk_client import MODEL, PACKET_BYTES

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.filterwarnings("ignore:dashscope 2.0 audio API is a preview:FutureWarning"),
    pytest.mark.filterwarnings("ignore:no workspace configured:UserWarning"),  # about an address that is not used
]

CLIP = speech.clip("followme-status")
TIMEOUT_S = 2.0


@pytest.fixture
def session(server: ServerProcess) -> Iterator[RealtimeSession]:
    client = dashscope.Client(api_key="sk-test", timeout=TIMEOUT_S)
    with client.audio.realtime.connect(model=MODEL, ws_url=server.url) as session:
        yield session


def send(session: RealtimeSession, pcm: bytes) -> None:
    for start in range(0, len(pcm), PACKET_BYTES):
        session.append_audio(pcm[start : start + PACKET_BYTES])


def read_to_the_end(session: RealtimeSession) -> list[Frame]:
    frames: list[Frame] = []
    for event in session.events():
        frames.append(event)
        if event["type"] == "session.finished":
            break
    return frames


def test_vad_flow(session: RealtimeSession) -> None:
    session.update_session(["text"], transcription_params={"language": "en"})
    send(session, speech.conversation().pcm16)
    session.end_session()
    frames = read_to_the_end(session)
    assert_finished(frames, audio_ms=speech.conversation().seconds * 1000)
    assert len(transcripts(frames)) == len(speech.conversation_turns())
    assert speech.wer(speech.conversation().text, " ".join(transcripts(frames))) < 0.5


def test_manual_flow(session: RealtimeSession) -> None:
    session.update_session(["text"], enable_turn_detection=False)
    send(session, CLIP.pcm16)
    session.commit()
    session.end_session()
    frames = read_to_the_end(session)
    assert_finished(frames)
    assert speech.wer(CLIP.text, transcripts(frames)[0]) < 0.5


def test_without_update(session: RealtimeSession) -> None:
    send(session, CLIP.pcm16)
    session.end_session()
    frames = read_to_the_end(session)
    assert_finished(frames)
    assert [frame["type"] for frame in frames].count(COMPLETED) == 1


def test_pings_keep_an_idle_session_alive(session: RealtimeSession) -> None:
    """Nothing but pings comes for twice the read timeout."""
    idle = threading.Timer(2 * TIMEOUT_S, session.end_session)
    idle.start()
    frames = read_to_the_end(session)
    idle.join()
    assert [frame["type"] for frame in frames] == ["session.created", "session.finished"]


def test_a_client_error_keeps_the_session(session: RealtimeSession) -> None:
    session.update_session(["text"], enable_turn_detection=False)
    session.commit()
    with pytest.raises(DashScopeError, match="Error committing input audio buffer"):
        read_to_the_end(session)
    send(session, CLIP.pcm16)
    session.commit()
    session.end_session()
    assert speech.wer(CLIP.text, transcripts(read_to_the_end(session))[0]) < 0.5


def test_wrong_key_is_told(guarded_server: ServerProcess) -> None:
    client = dashscope.Client(api_key="sk-wrong", timeout=TIMEOUT_S)
    session = client.audio.realtime.connect(model=MODEL, ws_url=guarded_server.url)
    with pytest.raises(Exception, match="InvalidApiKey"):
        session.connect()
