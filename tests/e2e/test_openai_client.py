"""The doors of OpenAI's interface with OpenAI's own client, unmodified but for its base URL.

Its classes take whatever they get, so each answer is checked against them once more.
"""

import base64
from collections.abc import Iterator
from typing import Any, TypeVar

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Model
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from support.doors import SEGMENTS, SPEECH, data_url, wav
from support.energy_vad import EnergyVad
from support.fake_engine import FailsLater, FakeEngine
from support.server import RunningServer, running_server
from support.web_server import ok, web_server

T = TypeVar("T", bound=openai.BaseModel)

BASES = ("/v1", "/compatible-mode/v1")
FILE = ("speech.wav", SPEECH)
BASE64 = base64.b64encode(SPEECH).decode()
INPUT_AUDIO = {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}
AUDIO_URL = {"type": "audio_url", "audio_url": {"url": data_url(SPEECH)}}


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def server(engine: FakeEngine) -> Iterator[RunningServer]:
    settings = {"api_keys": "sk-right", "fetch_trusted_networks": "127.0.0.1", "max_upload_bytes": 200_000}
    with running_server(settings, engine=engine, vad=EnergyVad()) as running:
        yield running


@pytest.fixture(scope="module")
def clients(server: RunningServer) -> Iterator[dict[str, OpenAI]]:
    """Return a client for each base URL."""
    made = {base: client_of(server, base) for base in BASES}
    yield made
    for client in made.values():
        client.close()


@pytest.fixture(scope="module")
def client(clients: dict[str, OpenAI]) -> OpenAI:
    return clients["/v1"]


def client_of(server: RunningServer, base: str = "/v1", key: str = "sk-right") -> OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return OpenAI(base_url=server.http_url + base, api_key=key, max_retries=0, timeout=60, http_client=http)


def checked(answer: Any, kind: type[T]) -> T:
    """Return an answer that holds what its class says, of the right types."""
    assert isinstance(answer, kind)
    return kind.model_validate(answer.to_dict(), strict=True)


def user(part: dict[str, Any]) -> Any:
    return [{"role": "user", "content": [part]}]


# Transcriptions


@pytest.fixture(scope="module")
def text(client: OpenAI) -> str:
    """Return what the engine makes of the speech."""
    return client.audio.transcriptions.create(model="whisper-1", file=FILE).text


def test_json(client: OpenAI) -> None:
    answer = checked(client.audio.transcriptions.create(model="gpt-transcribe", file=FILE), Transcription)
    assert len(answer.text.split()) == 5
    assert answer.usage is not None
    assert answer.usage.to_dict() == {"type": "duration", "seconds": 3.78}
    assert [language.code for language in answer.languages or ()] == ["en"]


@pytest.mark.parametrize(
    ("granularities", "expected"),
    [
        (openai.omit, {"segments"}),
        (["segment"], {"segments"}),
        (["word"], {"words"}),
        (["word", "segment"], {"words", "segments"}),
    ],
)
def test_verbose_json(client: OpenAI, text: str, granularities: Any, expected: set[str]) -> None:
    answer = client.audio.transcriptions.create(
        model="whisper-1", file=FILE, response_format="verbose_json", timestamp_granularities=granularities
    )
    verbose = checked(answer, TranscriptionVerbose)
    assert (verbose.text, verbose.language, verbose.duration) == (text, "english", 3.78)
    assert {name for name in ("segments", "words") if getattr(verbose, name) is not None} == expected
    assert [word.word for word in verbose.words or ()] == (text.split() if "words" in expected else [])
    assert len(verbose.segments or ()) == (SEGMENTS if "segments" in expected else 0)
    assert verbose.usage is not None
    assert verbose.usage.seconds == 3.78


@pytest.mark.parametrize(("kind", "begins"), [("text", ""), ("srt", "1\n00:00:00,"), ("vtt", "WEBVTT\n\n00:00:00.")])
def test_texts(client: OpenAI, text: str, kind: Any, begins: str) -> None:
    answer = client.audio.transcriptions.create(model="whisper-1", file=FILE, response_format=kind)
    assert answer.startswith(begins or f"{text}\n")
    assert all(word in answer for word in text.split())


def test_a_stream_of_text(client: OpenAI, text: str) -> None:
    told = list(client.audio.transcriptions.create(model="gpt-4o-transcribe", file=FILE, stream=True, prompt="Qwen"))
    deltas = [checked(event, TranscriptionTextDeltaEvent) for event in told[:-1]]
    done = checked(told[-1], TranscriptionTextDoneEvent)
    assert len(deltas) == SEGMENTS
    assert "".join(delta.delta for delta in deltas) == done.text == text
    assert done.usage is not None
    assert done.usage.to_dict() == {
        "type": "tokens",
        "input_tokens": 96,
        "input_token_details": {"audio_tokens": 95, "text_tokens": 1},
        "output_tokens": 5,
        "total_tokens": 101,
    }
    assert [language.code for language in done.languages or ()] == ["en"]


def test_what_is_said_beforehand(client: OpenAI, engine: FakeEngine) -> None:
    client.audio.transcriptions.create(
        model="gpt-transcribe",
        file=FILE,
        prompt="A talk.",
        keywords=["Qwen", "不二家"],
        extra_body={"custom_vocabulary_word": '[{"word": "SQL", "sounds_like": ["sequel"]}]', "vocabulary": "{}"},
    )
    assert engine.opened[-1].context == "A talk.\nQwen, 不二家, SQL (sequel)"


def test_many_keywords(client: OpenAI, engine: FakeEngine) -> None:
    words = [f"word{number}" for number in range(1000)]
    client.audio.transcriptions.create(model="gpt-transcribe", file=FILE, keywords=words)
    assert engine.opened[-1].context == ", ".join(words)


@pytest.mark.parametrize(
    ("fields", "forced"),
    [
        ({"language": "zh"}, "zh"),
        ({"languages": ["zh"]}, "zh"),
        ({"languages": ["zh", "en"]}, None),
        ({"language": "en", "languages": ["zh"]}, "en"),
    ],
)
def test_languages(client: OpenAI, engine: FakeEngine, fields: dict[str, Any], forced: str | None) -> None:
    client.audio.transcriptions.create(model="gpt-transcribe", file=FILE, **fields)
    assert engine.opened[-1].language == forced


def test_fields_without_effect(client: OpenAI, text: str) -> None:
    answer = client.audio.transcriptions.create(
        model="gpt-4o-mini-transcribe-2025-12-15",
        file=FILE,
        temperature=0.7,
        include=["logprobs"],
        chunking_strategy={"type": "server_vad", "threshold": 0.5},
        known_speaker_names=["agent"],
    )
    assert answer.text == text


# Chat


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("part", [INPUT_AUDIO, AUDIO_URL], ids=["input_audio", "audio_url"])
def test_chat(clients: dict[str, OpenAI], text: str, base: str, part: Any) -> None:
    answer = clients[base].chat.completions.create(model="qwen3-asr-flash", messages=user(part))
    raw = base == "/v1" and part is AUDIO_URL
    whole = ("language English<asr_text>" if raw else "") + text
    message = answer.choices[0].message
    assert (message.role, message.content, answer.choices[0].finish_reason) == ("assistant", whole, "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.audio_tokens, answer.usage.to_dict()["seconds"]) == (95, 4)
    found: Any = message.annotations
    assert raw or (found[0].type, found[0].language, found[0].emotion) == ("audio_info", "en", "neutral")
    message.annotations = None  # the vendor's are not OpenAI's
    checked(answer, ChatCompletion)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("part", [INPUT_AUDIO, AUDIO_URL], ids=["input_audio", "audio_url"])
@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_of_chunks(clients: dict[str, OpenAI], text: str, base: str, part: Any, include_usage: bool) -> None:
    told = [
        checked(chunk, ChatCompletionChunk)
        for chunk in clients[base].chat.completions.create(
            model="none", messages=user(part), stream=True, stream_options={"include_usage": include_usage}
        )
    ]
    raw = base == "/v1" and part is AUDIO_URL
    whole = ("language English<asr_text>" if raw else "") + text
    assert told[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told if chunk.choices) == whole
    assert [chunk.choices[0].finish_reason for chunk in told if chunk.choices][-1] == "stop"
    assert [chunk.usage is not None for chunk in told] == [*[False] * (SEGMENTS + 2), *[True] * include_usage]
    assert not include_usage or told[-1].choices == []


@pytest.mark.parametrize("base", BASES)
def test_options_of_the_recogniser(clients: dict[str, OpenAI], engine: FakeEngine, base: str) -> None:
    words = [{"word": "不二家", "sounds_like": ["bu er jia"]}]
    messages = [{"role": "system", "content": "A talk."}, *user(INPUT_AUDIO)]
    clients[base].chat.completions.create(
        model="qwen3-asr-flash",
        messages=messages,
        temperature=0,
        extra_body={"asr_options": {"language": "zh", "enable_itn": False, "custom_vocabulary_word": words}},
    )
    assert (engine.opened[-1].language, engine.opened[-1].context) == ("zh", "A talk.\n不二家 (bu er jia)")


async def test_an_address_with_the_asynchronous_client(server: RunningServer, text: str) -> None:
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    base = server.http_url + BASES[1]
    async with web_server() as web, AsyncOpenAI(base_url=base, api_key="sk-right", http_client=http) as client:
        web.answers["/speech.wav"] = ok(SPEECH)
        part = {"type": "input_audio", "input_audio": {"data": web.url("/speech.wav")}}
        answer = await client.chat.completions.create(model="qwen3-asr-flash", messages=user(part))
    assert answer.choices[0].message.content == text


# Models


@pytest.mark.parametrize("base", BASES)
def test_models(clients: dict[str, OpenAI], base: str) -> None:
    (listed,) = [checked(model, Model) for model in clients[base].models.list()]
    assert clients[base].models.retrieve(listed.id) == listed
    with pytest.raises(openai.NotFoundError) as caught:
        clients[base].models.retrieve("some/other")
    assert caught.value.code == "model_not_found"


# Errors


def transcribe(client: OpenAI, **fields: Any) -> Any:
    return client.audio.transcriptions.create(**{"model": "whisper-1", "file": FILE, **fields})


def complete(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "none", "messages": user(INPUT_AUDIO), **fields})


@pytest.mark.parametrize(
    ("call", "fields", "kind", "code", "said"),
    [
        (transcribe, {"file": ("a.wav", b"")}, openai.BadRequestError, "invalid_file", "empty"),
        (transcribe, {"language": "xx"}, openai.BadRequestError, "invalid_value", "language"),
        (transcribe, {"languages": ["en", "xx"]}, openai.BadRequestError, "invalid_value", "language"),
        (transcribe, {"keywords": ["x" * 101]}, openai.BadRequestError, "invalid_value", "keywords[0]"),
        (transcribe, {"model": "whisper-9"}, openai.NotFoundError, "model_not_found", "none"),
        (transcribe, {"model": "gpt-4o-transcribe-diarize"}, openai.NotFoundError, "model_not_found", "none"),
        (transcribe, {"file": ("a.wav", wav((0.25, 10.0)))}, openai.APIStatusError, "file_too_large", "200000"),
        (complete, {"messages": []}, openai.BadRequestError, "invalid_value", "no audio"),
        (complete, {"messages": user(INPUT_AUDIO) * 2}, openai.BadRequestError, "invalid_value", "2 audios"),
        (complete, {"model": "gpt-5"}, openai.NotFoundError, "model_not_found", "none"),
        (
            complete,
            {"extra_body": {"asr_options": {"language": "xx"}}},
            openai.BadRequestError,
            "invalid_value",
            "lang",
        ),
    ],
)
def test_errors(client: OpenAI, call: Any, fields: dict[str, Any], kind: Any, code: str, said: str) -> None:
    with pytest.raises(kind) as caught:
        call(client, **fields)
    assert caught.value.code == code
    assert said in caught.value.message
    assert caught.value.request_id


@pytest.mark.parametrize("base", BASES)
def test_a_wrong_key(server: RunningServer, base: str) -> None:
    with client_of(server, base, "sk-wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_there_are_no_translations(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/audio/translations"):
        client.post("/audio/translations", cast_to=object, body={"model": "whisper-1"})


@pytest.mark.parametrize("call", [transcribe, complete])
def test_a_failure_in_mid_stream_is_raised(call: Any) -> None:
    recording = wav((0.25, 0.64), (0.0, 60.0), (0.25, 0.64))
    part = {"type": "input_audio", "input_audio": {"data": data_url(recording)}}
    fields = {"file": ("a.wav", recording)} if call is transcribe else {"messages": user(part)}
    with running_server(engine=FailsLater(), vad=EnergyVad()) as running, client_of(running) as client:
        events = iter(call(client, stream=True, **fields))
        next(events)
        with pytest.raises(openai.APIError, match="cannot be recognised"):
            list(events)


@pytest.mark.parametrize("call", [transcribe, complete])
def test_a_full_server(call: Any) -> None:
    with (
        running_server({"max_recordings": 1}, engine=FakeEngine(), vad=EnergyVad()) as running,
        running.services.recordings.admit(),
        client_of(running) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        call(client)
    assert (caught.value.status_code, caught.value.code) == (503, "server_overloaded")
    assert int(caught.value.response.headers["retry-after"]) > 0
