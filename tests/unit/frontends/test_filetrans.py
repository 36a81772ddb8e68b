"""The vendor's forms for transcribed files: requests that are read, polls and result files that are written."""

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen3_asr_server.domain import Word
from qwen3_asr_server.errors import AsrServerError, InvalidValue, UnknownModel
from qwen3_asr_server.frontends._filetrans import CODES, MANY_FILES, ONE_FILE, result_file, task_of
from qwen3_asr_server.frontends._filetrans_fields import MAX_URL_CHARS, MAX_URLS, SCHEMA, request_of
from qwen3_asr_server.runtime._media_wire import MediaKind
from qwen3_asr_server.runtime.job_results import JobResult
from qwen3_asr_server.runtime.job_values import Failure, Job, JobFile, JobState, JobStatus, JobWish
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.text.transcript import Segment, Transcript
from support.fake_engine import FakeEngine
from support.server import make_settings

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")
ONE = {"model": "qwen3-asr-flash-filetrans", "input": {"file_url": "http://host/a.wav"}}
MANY = {"model": "fun-asr", "input": {"file_urls": ["http://host/a.wav", "oss://folder/b.wav"]}}


@pytest.fixture(scope="module")
def services() -> Services:
    return Services(make_settings(), engine=FakeEngine())


def wish(services: Services, body: dict[str, Any], **parameters: Any) -> JobWish:
    return request_of(body | {"parameters": parameters}, services).wish


# Requests


def test_the_field_of_the_files_chooses_the_form(services: Services) -> None:
    one, many = request_of(ONE, services), request_of(MANY, services)
    assert (one.form, one.urls, one.model) == (ONE_FILE, ("http://host/a.wav",), "qwen3-asr-flash-filetrans")
    assert (many.form, many.urls, many.model) == (MANY_FILES, tuple(MANY["input"]["file_urls"]), "fun-asr")


@pytest.mark.parametrize(
    ("body", "parameters", "expected"),
    [
        (ONE, {}, {}),
        (ONE, {"enable_words": True}, {"words": True}),
        (ONE, {"enable_words": None, "language": None}, {}),
        (MANY, {}, {"words": True}),
        (MANY, {"enable_words": False}, {"words": False}),
        (ONE, {"language": "zh"}, {"language": "zh"}),
        (ONE, {"language": "auto"}, {}),
        (ONE, {"language_hints": ["en"]}, {"language": "en"}),
        (ONE, {"language_hints": ["zh", "en"]}, {}),
        (ONE, {"language": "en", "language_hints": ["zh"]}, {"language": "en"}),
        (ONE, {"channel_id": [1, 0, 1]}, {"channels": (0, 1)}),
        (ONE, {"channel_id": 1}, {"channels": (1,)}),
        (ONE, {"corpus": {"text": "Wu Tang"}}, {"context": "Wu Tang"}),
        (ONE, {"vocabulary": {"Qwen": 4, "Tang": 5}}, {"context": "Tang, Qwen"}),
        (ONE, {"enable_itn": True, "diarization_enabled": True, "speaker_count": 2, "vocabulary_id": "v"}, {}),
        (ONE, {"special_word_filter": '{"filter_with_signed": {"word_list": ["a"]}}'}, {"details": {"hidden": ["a"]}}),
        (ONE, {"special_word_filter": '{"filter_with_empty": {"word_list": ["a"]}}'}, {"details": {"left_out": ["a"]}}),
        (ONE, {"special_word_filter": '{"system_reserved_filter": true}'}, {}),
    ],
)
def test_parameters(services: Services, body: dict[str, Any], parameters: Any, expected: dict[str, Any]) -> None:
    assert wish(services, body, **parameters) == JobWish(**{"model": "none", "words": body is MANY, **expected})


@pytest.mark.parametrize(
    "model",
    [
        *("fun-asr", "fun-asr-2025-11-07", "paraformer-v2", "paraformer-8k-v2", "sensevoice-v1"),
        *("qwen3-asr-flash-filetrans", "qwen-audio-3.1-asr-flash-filetrans", "QWEN3-asr-flash", "none"),
    ],
)
def test_models(services: Services, model: str) -> None:
    assert request_of(ONE | {"model": model}, services).wish.model == "none"


LONGEST_URL = "http://host/".ljust(MAX_URL_CHARS, "a")


@pytest.mark.parametrize("urls", [["http://host/a"] * MAX_URLS, [LONGEST_URL]], ids=["many", "long"])
def test_the_limits_of_files_are_inclusive(services: Services, urls: list[str]) -> None:
    assert request_of({"model": "fun-asr", "input": {"file_urls": urls}}, services).urls == tuple(urls)


INPUT_FAULTS: dict[str, Any] = {
    "no input": None,
    "no file": {},
    "an empty URL": {"file_url": ""},
    "no string": {"file_url": 1},
    "no files": {"file_urls": []},
    "both": {"file_url": "http://host/a", "file_urls": ["http://host/a"]},
    "files that are a string": {"file_urls": "http://host/a"},
    "a file that is no string": {"file_urls": [None]},
    "too many": {"file_urls": ["http://host/a"] * (MAX_URLS + 1)},
    "too long": {"file_url": LONGEST_URL + "a"},
    "a data URL": {"file_url": "data:audio/wav;base64,AAAA"},
    "another scheme": {"file_url": "ftp://host/a"},
    "half a character": {"file_url": "http://host/\ud800"},
    "input that is a list": [],
}


@pytest.mark.parametrize("name", INPUT_FAULTS)
def test_wrong_files(services: Services, name: str) -> None:
    with pytest.raises(InvalidValue):
        request_of({"model": "fun-asr", "input": INPUT_FAULTS[name]}, services)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"input": ONE["input"]}, InvalidValue),
        (ONE | {"model": 1}, InvalidValue),
        (ONE | {"model": "fun-asr-\ud800"}, InvalidValue),
        (ONE | {"model": "gpt-4o"}, UnknownModel),
        (ONE | {"model": "qwen3-asr-1.7b"}, UnknownModel),
        (ONE | {"parameters": []}, InvalidValue),
        *(
            (ONE | {"parameters": parameters}, InvalidValue)
            for parameters in (
                {"language": "Klingon"},
                {"language": "ja"},
                {"language": 1},
                {"language_hints": "zh"},
                {"language_hints": [1]},
                {"enable_words": "yes"},
                {"channel_id": [-1]},
                {"channel_id": "0"},
                {"channel_id": [True]},
                {"channel_id": [1000]},
                {"vocabulary": 1},
                {"corpus": {"text": 1}},
                {"special_word_filter": "{"},
                {"special_word_filter": "[1]"},
                {"special_word_filter": {"filter_with_signed": []}},
                {"special_word_filter": {"filter_with_signed": {"word_list": "a"}}},
                {"special_word_filter": {"filter_with_signed": {"word_list": [1]}}},
            )
        ),
    ],
)
def test_wrong_fields(services: Services, body: dict[str, Any], error: type[AsrServerError]) -> None:
    with pytest.raises(error) as raised:
        request_of(body, services)
    assert raised.value.param


def test_words_that_nobody_can_place() -> None:
    services = Services(make_settings(), engine=FakeEngine(word_times=False))
    assert not wish(services, MANY).words
    with pytest.raises(InvalidValue, match="WORD_TIMES"):
        wish(services, ONE, enable_words=True)


# Polls

DONE = JobFile("http://host/a", JobState.SUCCEEDED, 3.2, None, None, "name")
GONE = JobFile("http://host/b", JobState.FAILED, 0, Failure.MISSING, "It is gone.", None)
NEXT = JobFile("http://host/c", JobState.PENDING, 0, None, None, None)


def told(form: str, state: JobState, *files: JobFile, ahead: int = 0) -> dict[str, Any]:
    begun = None if state is JobState.PENDING else 2.0
    job = Job("id", form, "fun-asr", state, 1.0, begun, 3.0 if state.over else None, files, ahead)
    return task_of(JobStatus(job, 1.23456, None), lambda name: f"http://here/{name}.json")


def test_a_job_that_waits() -> None:
    body = told(ONE_FILE, JobState.PENDING, NEXT, ahead=4)
    assert set(body) == {"output"}
    assert set(body["output"]) == {"task_id", "task_status", "submit_time", "queue_position", "progress"}
    assert TIME.fullmatch(body["output"]["submit_time"])
    assert body["output"]["queue_position"] == 5


def test_one_file() -> None:
    body = told(ONE_FILE, JobState.SUCCEEDED, DONE)
    assert body["usage"] == {"seconds": 4}
    assert body["output"]["result"] == {"transcription_url": "http://here/name.json"}
    assert {"submit_time", "scheduled_time", "end_time"} <= set(body["output"])


def test_one_file_that_failed() -> None:
    body = told(ONE_FILE, JobState.FAILED, GONE)
    assert (body["output"]["code"], body["output"]["message"]) == ("FILE_404_NOT_FOUND", "It is gone.")
    assert not {"usage", "result"} & (set(body) | set(body["output"]))


def test_many_files() -> None:
    body = told(MANY_FILES, JobState.SUCCEEDED, DONE, GONE, DONE)
    assert body["usage"] == {"duration": 8}
    assert body["output"]["task_metrics"] == {"TOTAL": 3, "SUCCEEDED": 2, "FAILED": 1}
    first, second, _ = body["output"]["results"]
    assert first == {
        "file_url": "http://host/a",
        "transcription_url": "http://here/name.json",
        "subtask_status": "SUCCEEDED",
    }
    assert second == {
        "file_url": "http://host/b",
        "code": "FILE_404_NOT_FOUND",
        "message": "It is gone.",
        "subtask_status": "FAILED",
    }
    assert "code" not in body["output"]


def test_many_files_under_way() -> None:
    body = told(MANY_FILES, JobState.RUNNING, DONE, NEXT)
    assert body["output"]["progress"] == {"done_seconds": 1.235, "total_seconds": None}
    assert body["output"]["task_metrics"] == {"TOTAL": 2, "SUCCEEDED": 1, "FAILED": 0}
    assert "results" not in body["output"]


def test_every_failure_has_a_code() -> None:
    assert set(CODES) == set(Failure)


# Result files

SPOKEN = Segment(
    "Hello, world!", 16_000, 32_000, 0, "en", (Word("Hello", 16_000, 24_000), Word("world", 24_000, 32_000)), 0.9
)
RESULT = JobResult(
    ONE_FILE,
    "http://host/a",
    JobWish("m", words=True),
    MediaKind("mov,mp4,m4a", "aac", 44_100, 2),
    (0,),
    Transcript((SPOKEN,), 48_000),
)


def test_the_file_of_one() -> None:
    assert result_file(RESULT, "neutral") == {
        "file_url": "http://host/a",
        "audio_info": {"format": "mp4", "sample_rate": 44_100},
        "transcripts": [
            {
                "channel_id": 0,
                "text": "Hello, world!",
                "sentences": [
                    {
                        "sentence_id": 0,
                        "begin_time": 1000,
                        "end_time": 2000,
                        "text": "Hello, world!",
                        "language": "en",
                        "emotion": "neutral",
                        "words": [
                            {"begin_time": 1000, "end_time": 1500, "text": "Hello", "punctuation": ","},
                            {"begin_time": 1500, "end_time": 2000, "text": "world", "punctuation": "!"},
                        ],
                    }
                ],
            }
        ],
    }


def test_the_file_of_many() -> None:
    body = result_file(replace(RESULT, form=MANY_FILES), "neutral")
    assert body["properties"] == {
        "audio_format": "aac",
        "channels": [0, 1],
        "original_sampling_rate": 44_100,
        "original_duration_in_milliseconds": 3000,
    }
    (transcript,) = body["transcripts"]
    assert transcript["content_duration_in_milliseconds"] == 1000
    (sentence,) = transcript["sentences"]
    assert set(sentence) == {"sentence_id", "begin_time", "end_time", "text", "words"}
    assert sentence["sentence_id"] == 1


def test_words_and_emotion_only_where_they_are_wanted() -> None:
    result = replace(RESULT, wish=JobWish("m"), transcript=Transcript((replace(SPOKEN, language=None),), 1))
    (sentence,) = result_file(result, "")["transcripts"][0]["sentences"]
    assert not {"words", "emotion", "language"} & set(sentence)


def test_channels() -> None:
    transcript = Transcript((replace(SPOKEN, channel=3),), 48_000, channels=(1, 3))
    result = replace(RESULT, channels=(1, 3), transcript=transcript)
    body = result_file(result, "neutral")
    assert [(each["channel_id"], each["text"]) for each in body["transcripts"]] == [(1, ""), (3, "Hello, world!")]


@pytest.mark.parametrize(
    ("details", "text", "words"),
    [
        ({"hidden": ["world"]}, "Hello, *****!", ["Hello", "*****"]),
        ({"left_out": ["world"]}, "Hello, !", ["Hello"]),
    ],
)
def test_special_words(details: dict[str, Any], text: str, words: list[str]) -> None:
    body = result_file(replace(RESULT, wish=JobWish("m", words=True, details=details)), "")
    (sentence,) = body["transcripts"][0]["sentences"]
    assert (sentence["text"], [word["text"] for word in sentence["words"]]) == (text, words)


def test_words_that_are_not_those_of_the_text() -> None:
    words = (Word("twenty-one", 16_000, 32_000),)
    result = replace(RESULT, transcript=Transcript((replace(SPOKEN, text="21 and more", words=words),), 48_000))
    (sentence,) = result_file(result, "")["transcripts"][0]["sentences"]
    assert [(word["text"], word["punctuation"]) for word in sentence["words"]] == [("twenty-one", "")]


# The document

TABLE = Path(__file__).parents[3] / "docs" / "api" / "dashscope_jobs.md"
TEXT = TABLE.read_text("utf-8")


@pytest.mark.parametrize(("test", "file"), sorted(set(re.findall(r"\[`(\w+)`\]\(([^)]+\.py)\)", TEXT))))
def test_every_test_that_is_named_exists(test: str, file: str) -> None:
    functions = ast.parse((TABLE.parent / file).resolve().read_text("utf-8")).body
    assert test in {node.name for node in functions if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_field_and_every_code_is_explained() -> None:
    rows = "\n".join(line for line in TEXT.splitlines() if line.startswith("| "))
    assert {name for name in SCHEMA["properties"]["parameters"]["properties"] if f"`{name}`" not in rows} == set()
    assert {code for code in CODES.values() if f"`{code}`" not in rows} == set()
