"""`MultiModalConversation.call`: short recordings through the SDK, real speech and the embedded engine.

Local files go through the SDK's own upload. What the SDK is told goes wrong comes back as its response, not as an
exception.
"""

import base64
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dashscope
import pytest
from dashscope import MultiModalConversation
from dashscope.common.error import UploadFileException

from support import speech
from support.audio_files import wav_bytes
from support.process import ServerProcess, running_server

pytestmark = pytest.mark.sdk

MODEL = "qwen3-asr-flash"
API_KEY = "sk-0123456789"
CLIP = speech.conversation()
WORST_WER = 0.5
"""The embedded engine on a single clip; here real words must come."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state") / "data"


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[ServerProcess]:
    settings = {
        "API_KEYS": API_KEY,
        "DATA_DIR": str(data),
        "FETCH_TRUSTED_NETWORKS": "127.0.0.1",
        "SYNC_MAX_BYTES": "1000000",
        "SYNC_MAX_S": "25",
    }
    with running_server(**settings) as running:
        yield running


@pytest.fixture(autouse=True)
def address(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the SDK at the server."""
    monkeypatch.setattr(dashscope, "base_http_api_url", server.base_url)
    monkeypatch.setattr(dashscope, "api_key", API_KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """The address of a web server with the clips."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(speech.DATA))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def messages(audio: str, context: str = "") -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": [{"text": context}]},
        {"role": "user", "content": [{"audio": audio}]},
    ]


def call(audio: str, **options: Any) -> Any:
    return MultiModalConversation.call(**{"model": MODEL, "messages": messages(audio), **options})


def text_of(response: Any) -> str:
    assert response.status_code == 200, response
    return str(response.output.choices[0].message.content[0]["text"])


def data_url(file: bytes) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(file).decode()}"


def wav_of(samples: Any) -> bytes:
    return wav_bytes(samples)


CLIP_URL = data_url(CLIP.path.read_bytes())


@pytest.fixture(scope="module")
def text(server: ServerProcess) -> str:
    """Return what the server hears in the clip."""
    response = call(CLIP_URL, base_address=server.base_url, api_key=API_KEY)
    assert speech.wer(CLIP.text, text_of(response)) <= WORST_WER
    return text_of(response)


def test_an_answer_has_text_annotations_and_usage(text: str) -> None:
    response = call(CLIP_URL, asr_options={"language": "en", "enable_itn": False}, result_format="message")
    assert text_of(response) == text
    choice = response.output.choices[0]
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert choice.message["annotations"] == [{"type": "audio_info", "language": "en", "emotion": "neutral"}]
    assert response.usage["seconds"] == pytest.approx(CLIP.seconds, abs=1)
    assert response.usage["output_tokens_details"] == {"text_tokens": len(text.split())}
    assert response.request_id


@pytest.mark.parametrize("how", ["path", "file URL", "web"])
def test_where_a_recording_may_be(text: str, web: str, data: Path, how: str) -> None:
    address = {"path": str(CLIP.path), "file URL": f"file://{CLIP.path}", "web": f"{web}/{CLIP.path.name}"}[how]
    before = kept(data)
    assert text_of(call(address)) == text
    sent = kept(data) - before
    assert [file.read_bytes() for file in sent] == ([] if how == "web" else [CLIP.path.read_bytes()])


def kept(data: Path) -> set[Path]:
    return {path for path in data.rglob("*") if path.is_file()}


def test_a_stream_tells_all_so_far(text: str) -> None:
    *parts, last = call(CLIP_URL, stream=True)
    assert text_of(last) == text
    assert last.output.choices[0].finish_reason == "stop"
    assert len(parts) == len(speech.conversation_turns())
    assert {part.output.choices[0].finish_reason for part in parts} == {"null"}
    assert all(text.startswith(text_of(part)) for part in parts)
    assert [len(text_of(part)) for part in parts] == sorted({len(text_of(part)) for part in parts})


def test_a_stream_tells_what_is_new(text: str) -> None:
    responses = list(call(str(CLIP.path), stream=True, incremental_output=True))
    assert "".join(map(text_of, responses)) == text
    assert len(responses) > 1


def test_the_sdk_joins_what_is_new(text: str) -> None:
    *_, last = call(CLIP_URL, stream=True, incremental_output=False)
    assert text_of(last) == text


@pytest.mark.parametrize("stream", [False, True])
def test_silence_is_an_empty_text(stream: bool) -> None:
    response = call(data_url(wav_of(0 * CLIP.samples)), stream=stream)
    assert text_of(list(response)[-1] if stream else response) == ""


WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "a file without audio": ({"audio": data_url(b"words " * 100)}, 400, "InvalidParameter.DataInspection"),
    "too long": ({"audio": data_url(wav_of(speech.long_clip("nonstop_30s").samples))}, 400, "InvalidParameter"),
    "too large": ({"audio": data_url(bytes(1_000_001))}, 413, "BadRequest.TooLarge"),
    "wrong language": ({"asr_options": {"language": "Klingon"}}, 400, "InvalidParameter"),
    "a language that the model does not know": ({"asr_options": {"language": "fr"}}, 400, "InvalidParameter"),
    "wrong model": ({"model": "qwen-max"}, 404, "Model.NotExist"),
    "refused": ({"audio": "http://127.0.0.2:9/a.wav"}, 400, "InvalidURL"),
    "unreachable": ({"audio": "http://127.0.0.1:9/a.wav"}, 400, "InvalidParameter.DataInspection"),
    "a path on the server": ({"audio": "/no/such/file.wav"}, 400, "InvalidURL"),
    "wrong key": ({"api_key": "sk-wrong"}, 401, "InvalidApiKey"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_goes_wrong_is_said(data: Path, wrong: str, stream: bool) -> None:
    options, status, code = WRONG[wrong]
    before = kept(data)
    response = call(**{"audio": CLIP_URL, **options}, stream=stream)
    if stream:
        (response,) = response
    assert (response.status_code, response.code) == (status, code)
    assert response.message
    assert response.request_id
    assert kept(data) == before


def test_a_wrong_key_sends_no_file(data: Path) -> None:
    before = kept(data)
    with pytest.raises(UploadFileException, match="InvalidApiKey"):
        call(str(CLIP.path), api_key="sk-wrong")
    assert kept(data) == before


def test_files_of_the_same_name_do_not_meet(text: str, tmp_path: Path) -> None:
    silent = tmp_path / CLIP.path.name
    silent.write_bytes(wav_of(0 * CLIP.samples))
    assert [text_of(call(str(path))) for path in (CLIP.path, silent)] == [text, ""]
