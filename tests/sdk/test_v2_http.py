"""The second generation of the SDK, `Client.multimodal.chat`: short recordings, real speech and the embedded engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dashscope
import pytest
from dashscope.common.error import UploadFileException
from dashscope.v2.errors import (
    AuthenticationError,
    BadRequestError,
    DashScopeError,
    NotFoundError,
    RequestTooLargeError,
)

from support import speech
from support.recorded_sdk import MODEL, PROMPTS, SAMPLES, WORDS, WORST_WER, RecordingServer, data_url, served, wav

pytestmark = pytest.mark.sdk

URL = data_url(wav())


@pytest.fixture(scope="module")
def client(second_generation: dict[str, Any]) -> Iterator[Any]:
    with dashscope.Client(**second_generation) as client:
        yield client


def ask(client: Any, audio: str, **options: Any) -> Any:
    """Return a completion or a stream, or what gives one when awaited."""
    messages = [
        {"role": "system", "content": "Conferences and queues."},
        {"role": "user", "content": [{"type": "audio", "url": audio}]},
    ]
    return client.multimodal.chat.create(**{"model": MODEL, "messages": messages, **options})


@pytest.fixture(scope="module")
def text(client: Any) -> str:
    heard = ask(client, URL).choices[0].message.content
    assert speech.wer(WORDS, heard) <= WORST_WER
    return str(heard)


def test_an_answer(client: Any, text: str) -> None:
    completion = ask(client, URL, parameters={"asr_options": {"language": "en"}})
    assert completion.choices[0].message.content == text
    assert completion.choices[0].finish_reason == "stop"
    assert completion.request_id == completion.headers["x-request-id"]


def test_inline_audio(client: Any, text: str) -> None:
    part = {"type": "audio", "data": URL.partition(",")[2], "format": "wav"}
    completion = ask(client, URL, messages=[{"role": "user", "content": [part]}])
    assert completion.choices[0].message.content == text


@pytest.mark.parametrize("how", ["path", "file URL", "web"])
def test_where_a_recording_may_be(client: Any, text: str, tmp_path: Path, how: str) -> None:
    file = tmp_path / "two.wav"
    file.write_bytes(wav())
    with served(tmp_path) as web:
        place = {"path": str(file), "file URL": f"file://{file}", "web": f"{web}/two.wav"}[how]
        assert ask(client, place).choices[0].message.content == text


@pytest.mark.parametrize("incremental", [None, True, False])
def test_streams(client: Any, text: str, incremental: bool | None) -> None:
    parts = list(ask(client, URL, stream=True, incremental_output=incremental).text_stream)
    assert (parts[-1] if incremental is False else "".join(parts)) == text
    assert len(parts) >= len(PROMPTS)


def test_a_stream_gives_the_whole_at_its_end(client: Any, text: str) -> None:
    completion = ask(client, URL, stream=True).get_final_message()
    assert completion.choices[0].message.content == text
    assert completion.choices[0].finish_reason == "stop"


async def test_the_asynchronous_client_hears_the_same(second_generation: dict[str, Any], text: str) -> None:
    async with dashscope.AsyncClient(**second_generation) as aio:
        assert (await ask(aio, URL)).choices[0].message.content == text
        stream = await ask(aio, URL, stream=True)
        assert (await stream.get_final_message()).choices[0].message.content == text
        with pytest.raises(NotFoundError):
            await ask(aio, URL, model="qwen-max")


def test_silence_is_an_empty_text(client: Any) -> None:
    assert not ask(client, data_url(wav(0 * SAMPLES))).choices[0].message.content


WRONG: dict[str, tuple[dict[str, Any], type[DashScopeError], str]] = {
    "a file without audio": ({"audio": data_url(b"words " * 100)}, BadRequestError, "InvalidParameter.DataInspection"),
    "too long": (
        {"audio": data_url(wav(speech.long_clip("nonstop_30s").samples))},
        BadRequestError,
        "InvalidParameter",
    ),
    "too large": ({"audio": data_url(bytes(1_500_001))}, RequestTooLargeError, "BadRequest.TooLarge"),
    "wrong language": ({"parameters": {"asr_options": {"language": "Klingon"}}}, BadRequestError, "InvalidParameter"),
    "wrong model": ({"model": "qwen-max"}, NotFoundError, "Model.NotExist"),
    "refused": ({"audio": "http://127.0.0.2:9/a.wav"}, BadRequestError, "InvalidURL"),
    "unreachable": ({"audio": "http://127.0.0.1:9/a.wav"}, BadRequestError, "InvalidParameter.DataInspection"),
    "wrong key": ({"api_key": "sk-wrong"}, AuthenticationError, "InvalidApiKey"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_goes_wrong_is_raised(client: Any, recordings: RecordingServer, wrong: str, stream: bool) -> None:
    options, error, code = WRONG[wrong]
    before = recordings.kept
    with pytest.raises(error) as raised:
        list(ask(client, **{"audio": URL, **options}, stream=stream))
    assert raised.value.code == code
    assert raised.value.request_id
    assert recordings.kept == before


def test_a_wrong_key_sends_no_file(client: Any, recordings: RecordingServer, tmp_path: Path) -> None:
    (tmp_path / "two.wav").write_bytes(wav())
    before = recordings.kept
    with pytest.raises(UploadFileException, match="InvalidApiKey"):
        ask(client, str(tmp_path / "two.wav"), api_key="sk-wrong")
    assert recordings.kept == before
