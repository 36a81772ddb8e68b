"""`MultiModalConversation.call`: short recordings through the SDK, real speech and the embedded engine.

Local files go through the SDK's own upload. What the SDK is told goes wrong comes back as its response, not as an
exception.
"""

from pathlib import Path
from typing import Any

import pytest
from dashscope import AioMultiModalConversation, MultiModalConversation
from dashscope.common.error import UploadFileException

from support import speech
from support.recorded_sdk import (
    MODEL,
    PROMPTS,
    SAMPLES,
    SECONDS,
    WORDS,
    WORST_WER,
    RecordingServer,
    data_url,
    served,
    wav,
)

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.usefixtures("pointed"),
    pytest.mark.filterwarnings("ignore:unclosed file .*two prompts:ResourceWarning"),  # SDK 1.25.6 leaves it open
]

URL = data_url(wav())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "two prompts.wav"
    path.write_bytes(wav())
    return path


@pytest.fixture(scope="module")
def text(recordings: RecordingServer) -> str:
    """Return what the server hears in the recording."""
    heard = text_of(call(URL, base_address=recordings.base_url, api_key=recordings.key))
    assert speech.wer(WORDS, heard) <= WORST_WER
    return heard


def asked(audio: str, **options: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": [{"text": "Conferences and queues."}]},
        {"role": "user", "content": [{"audio": audio}]},
    ]
    return {"model": MODEL, "messages": messages, **options}


def call(audio: str, **options: Any) -> Any:
    return MultiModalConversation.call(**asked(audio, **options))


def text_of(response: Any) -> str:
    assert response.status_code == 200, response
    return str(response.output.choices[0].message.content[0]["text"])


def test_an_answer_has_text_annotations_and_usage(text: str) -> None:
    response = call(URL, asr_options={"language": "en", "enable_itn": False}, result_format="message")
    assert text_of(response) == text
    choice = response.output.choices[0]
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert choice.message["annotations"] == [{"type": "audio_info", "language": "en", "emotion": "neutral"}]
    assert response.usage["seconds"] == pytest.approx(SECONDS, abs=1)
    assert response.usage["output_tokens_details"] == {"text_tokens": len(text.split())}
    assert response.request_id


@pytest.mark.parametrize("how", ["path", "file URL", "web"])
def test_where_a_recording_may_be(recordings: RecordingServer, text: str, file: Path, how: str) -> None:
    before = recordings.kept
    with served(file.parent) as web:
        place = {"path": str(file), "file URL": f"file://{file}", "web": f"{web}/two%20prompts.wav"}[how]
        assert text_of(call(place)) == text
    sent = recordings.kept - before
    assert [path.read_bytes() for path in sent] == ([] if how == "web" else [wav()])


def test_a_stream_tells_all_so_far(text: str) -> None:
    *parts, last = call(URL, stream=True)
    assert text_of(last) == text
    assert last.output.choices[0].finish_reason == "stop"
    assert len(parts) == len(PROMPTS)
    assert {part.output.choices[0].finish_reason for part in parts} == {"null"}
    assert all(text.startswith(text_of(part)) for part in parts)
    assert len(text_of(parts[0])) < len(text_of(parts[1]))


def test_a_stream_tells_what_is_new(text: str, file: Path) -> None:
    responses = list(call(str(file), stream=True, incremental_output=True))
    assert "".join(map(text_of, responses)) == text
    assert len(responses) == len(PROMPTS) + 1


def test_the_sdk_joins_what_is_new(text: str) -> None:
    *_, last = call(URL, stream=True, incremental_output=False)
    assert text_of(last) == text


async def test_the_asynchronous_class_hears_the_same(text: str, file: Path) -> None:
    assert text_of(await AioMultiModalConversation.call(**asked(str(file)))) == text
    responses = [part async for part in await AioMultiModalConversation.call(**asked(URL, stream=True))]
    assert text_of(responses[-1]) == text
    assert len(responses) == len(PROMPTS) + 1


@pytest.mark.parametrize("stream", [False, True])
def test_silence_is_an_empty_text(stream: bool) -> None:
    response = call(data_url(wav(0 * SAMPLES)), stream=stream)
    assert text_of(list(response)[-1] if stream else response) == ""


def test_files_of_the_same_name_do_not_meet(text: str, file: Path, tmp_path: Path) -> None:
    silent = tmp_path / file.name
    silent.write_bytes(wav(0 * SAMPLES))
    assert [text_of(call(str(path))) for path in (file, silent)] == [text, ""]


WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "a file without audio": ({"audio": data_url(b"words " * 100)}, 400, "InvalidParameter.DataInspection"),
    "too long": ({"audio": data_url(wav(speech.long_clip("nonstop_30s").samples))}, 400, "InvalidParameter"),
    "too large": ({"audio": data_url(bytes(1_500_001))}, 413, "BadRequest.TooLarge"),
    "wrong language": ({"asr_options": {"language": "Klingon"}}, 400, "InvalidParameter"),
    "a language that the model does not know": ({"asr_options": {"language": "fr"}}, 400, "InvalidParameter"),
    "wrong model": ({"model": "qwen-max"}, 404, "Model.NotExist"),
    "refused": ({"audio": "http://127.0.0.2:9/a.wav"}, 400, "InvalidURL"),
    "unreachable": ({"audio": "http://127.0.0.1:9/a.wav"}, 400, "InvalidParameter.DataInspection"),
    "a path on the server": ({"audio": "/no/such/file.wav"}, 400, "InvalidURL"),
    "an upload that is not there": ({"audio": f"oss://{'0' * 32}/a.wav"}, 400, "InvalidParameter.DataInspection"),
    "wrong key": ({"api_key": "sk-wrong"}, 401, "InvalidApiKey"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_goes_wrong_is_said(recordings: RecordingServer, wrong: str, stream: bool) -> None:
    options, status, code = WRONG[wrong]
    before = recordings.kept
    response = call(**{"audio": URL, **options}, stream=stream)
    if stream:
        (response,) = response
    assert (response.status_code, response.code) == (status, code)
    assert response.message
    assert response.request_id
    assert recordings.kept == before


def test_a_wrong_key_sends_no_file(recordings: RecordingServer, file: Path) -> None:
    before = recordings.kept
    with pytest.raises(UploadFileException, match="InvalidApiKey"):
        call(str(file), api_key="sk-wrong")
    assert recordings.kept == before
