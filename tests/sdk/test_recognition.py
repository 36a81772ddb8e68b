"""`Recognition`, the run-task protocol: whole files, live audio, and what goes wrong.

What goes wrong comes back as the SDK's own result, from `call` or to `on_error`, and never as an exception.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import dashscope
import pytest
import soxr
from dashscope.audio.asr import Recognition, RecognitionResult
from dashscope.common.error import InvalidParameter

from support import speech
from support.audio_files import ogg_opus
from support.media_files import Kind, write_media
from support.process import ServerProcess
from support.recognition_sdk import MODEL, TWO_SENTENCES, Listener, assert_sentences, recognition, send, text_of
from support.recorded_sdk import PROMPTS, SAMPLES, SECONDS, WORDS, wav

pytestmark = [pytest.mark.sdk, pytest.mark.usefixtures("pointed_at_tasks")]

NARROW_CLIP = speech.clip("queue-quantity1")
"""One that the embedded engine understands without the upper half of its spectrum too; there are few."""
SPEEX = speech.DATA.parent / "formats" / "en-00.spx"
SPEEX_TEXT = "hello three six"
PAUSE_BYTES = 6_400
"""How much of a sentence is held back until something was told of it."""
API_KEY = "sk-0123456789"
"""What `guarded_server` knows."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recording in every format, and files that are none."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "wav").write_bytes(wav())
    (folder / "conf-full").write_bytes(speech.clip("conf-full").pcm16)
    (folder / "pcm").write_bytes(speech.pcm16(SAMPLES))
    (folder / "opus").write_bytes(ogg_opus(SAMPLES))
    (folder / "speex").write_bytes(SPEEX.read_bytes())
    (folder / "text").write_bytes(b"no words " * 20_000)
    (folder / "silence").write_bytes(bytes(len(SAMPLES) * 2))
    for name, container, codec in (("mp3", "mp3", "libmp3lame"), ("aac", "adts", "aac"), ("m4a", "ipod", "aac")):
        write_media(folder / name, Kind(name, container, codec, 16_000), SAMPLES[:, None])
    narrow = soxr.resample(NARROW_CLIP.samples, 16_000, 8_000)
    write_media(folder / "amr", Kind("amr", "amr", "libopencore_amrnb", 8_000), narrow[:, None])
    return folder


def call(
    file: Path | str, *, model: str = MODEL, format: str = "pcm", sample_rate: Any = 16_000, **how: Any
) -> RecognitionResult:
    return Recognition(model, None, format, sample_rate).call(str(file), **how)


@pytest.fixture(scope="module")
def heard(files: Path) -> RecognitionResult:
    """What comes of the recording as one file."""
    return call(files / "wav", format="wav", **TWO_SENTENCES)


def test_a_file_is_told_as_sentences(heard: RecognitionResult) -> None:
    assert (heard.status_code, heard.code, heard.message) == (200, "", "")
    sentences = heard.get_sentence()
    assert_sentences(sentences)
    assert len(sentences) == len(PROMPTS)


def test_the_usage_of_a_file_is_how_far_its_speech_goes(heard: RecognitionResult) -> None:
    sentences = heard.get_sentence()
    seconds = [heard.get_usage(sentence)["duration"] for sentence in sentences]
    assert seconds == [-(-sentence["end_time"] // 1000) for sentence in sentences]
    assert heard.usage == {"duration": seconds[-1]}
    assert seconds[-1] == pytest.approx(SECONDS, abs=1)


@pytest.mark.parametrize(
    ("format", "sample_rate", "words"),
    [
        ("pcm", 16_000, WORDS),
        ("mp3", 16_000, WORDS),
        ("aac", 16_000, WORDS),
        ("opus", 16_000, WORDS),
        ("speex", 16_000, SPEEX_TEXT),
        ("amr", 8_000, NARROW_CLIP.text),
    ],
)
def test_formats(files: Path, format: str, sample_rate: int, words: str) -> None:
    result = call(files / format, format=format, sample_rate=sample_rate)
    assert result.status_code == 200, result
    assert_sentences(result.get_sentence(), words)


def test_a_file_of_silence_has_no_sentence(files: Path) -> None:
    began = time.monotonic()
    result = call(files / "silence")
    assert (result.status_code, result.get_sentence(), result.usage) == (200, None, None)
    assert time.monotonic() - began < 2


@pytest.fixture(scope="module")
def live() -> tuple[Listener, list[str]]:
    """What a recogniser calls that hears the recording twice, and what its task was called after each.

    The first time it pauses within either sentence until something is told of it.
    """
    names = []
    with recognition(**TWO_SENTENCES) as (client, listener):
        client.start()
        for number, part in enumerate(two_parts(), start=1):
            send(client, part[:-PAUSE_BYTES])
            listener.wait_for_sentence(number)
            send(client, part[-PAUSE_BYTES:])
        client.stop()
        names.append(client.get_last_request_id())
        client.start()
        send(client, b"".join(two_parts()))
        client.stop()
        names.append(client.get_last_request_id())
    return listener, names


def two_parts() -> list[bytes]:
    """The recording, cut behind its first sentence."""
    pcm, first = speech.pcm16(SAMPLES), 2 * len(speech.clip(PROMPTS[0]).samples)
    return [pcm[:first], pcm[first:]]


def test_live_audio_is_told_in_order(live: tuple[Listener, list[str]]) -> None:
    listener, names = live
    once = ["open", "complete", "close"]
    assert [call for call in listener.calls if call != "event"] == once * 2
    assert listener.calls[-2:] == once[1:]
    assert names[0] == names[1]
    assert {result.request_id for result in listener.results} == {names[0]}


def test_live_audio_is_heard_as_a_file_is(live: tuple[Listener, list[str]], heard: RecognitionResult) -> None:
    finals = live[0].finals
    half = len(PROMPTS)
    assert_sentences(finals[:half])
    assert finals[half:] == [dict(sentence, sentence_begin=ANY) for sentence in finals[:half]]
    assert [shown["text"] for shown in finals[:half]] == [sentence["text"] for sentence in heard.get_sentence()]


def test_interims_grow_into_their_final(live: tuple[Listener, list[str]]) -> None:
    results = live[0].results
    last = next(place for place, result in enumerate(results) if ends(result) and number_of(result) == len(PROMPTS))
    numbers = [number_of(result) for result in results[: last + 1]]
    assert numbers == sorted(numbers)
    for number in (1, 2):
        *interims, final = [result for result in results[: last + 1] if number_of(result) == number]
        assert interims
        assert ends(final)
        assert not any(map(ends, interims))
        snapshots = [result.get_sentence() for result in (*interims, final)]
        assert [snapshot["sentence_begin"] for snapshot in snapshots] == [True] + [False] * len(interims)
        assert {snapshot["begin_time"] for snapshot in snapshots} == {snapshots[0]["begin_time"]}
        assert all(snapshot["end_time"] is None and snapshot["text"] for snapshot in snapshots[:-1])
        assert [result.get_usage(result.get_sentence()) for result in interims] == [None] * len(interims)


def number_of(result: RecognitionResult) -> int:
    return int(result.get_sentence()["sentence_id"])


def ends(result: RecognitionResult) -> bool:
    return bool(RecognitionResult.is_sentence_end(result.get_sentence()))


def test_audio_that_stops_coming_ends_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK waits for 23 seconds, and then finishes by itself."""
    monkeypatch.setattr(Recognition, "SILENCE_TIMEOUT_S", 0.5)
    with recognition() as (client, listener):
        listener.nudge = None  # which would count as audio
        client.start()
        send(client, speech.pcm16(SAMPLES))
        listener.wait_for("complete")
    assert_sentences(listener.finals)


def test_recognitions_at_once_do_not_mix() -> None:
    def hear(name: str) -> str:
        with recognition() as (client, listener):
            client.start()
            started.wait()
            send(client, speech.clip(name).pcm16)
            client.stop()
            return text_of(listener.finals)

    alone = []
    for name in PROMPTS:
        started = threading.Barrier(1)
        alone.append(hear(name))
    started = threading.Barrier(len(PROMPTS))
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(hear, PROMPTS)) == alone
    assert alone[0] != alone[1]


KEYWORDS: dict[str, dict[str, Any]] = {
    "switches": {
        "disfluency_removal_enabled": True,
        "diarization_enabled": True,
        "timestamp_alignment_enabled": True,
        "audio_event_detection_enabled": True,
        "semantic_punctuation_enabled": True,
        "multi_threshold_mode_enabled": True,
        "punctuation_prediction_enabled": False,
        "inverse_text_normalization_enabled": False,
        "heartbeat": True,
    },
    "numbers": {"speaker_count": 2, "speech_noise_threshold": 0.1, "max_sentence_silence": 1300},
    "nothing": {"phrase_id": None, "special_word_filter": None, "heartbeat": False, "speaker_count": 0},
    "words": {"phrase_id": "vocab-1", "vocabulary_id": "vocab-2", "vocabulary": [{"text": "conference", "weight": 4}]},
    "language": {"language_hints": ["en"]},
    "languages": {"language_hints": ["zh", "en"]},
    "unknown": {"no_such_option": {"a": [1]}},
}


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
def test_every_keyword_is_taken(files: Path, keywords: dict[str, Any]) -> None:
    result = call(files / "conf-full", **keywords)
    assert result.status_code == 200, result
    assert_sentences(result.get_sentence(), speech.clip("conf-full").text)


def test_special_words_are_hidden(files: Path) -> None:
    filtered = '{"filter_with_signed": {"word_list": ["full"]}, "system_reserved_filter": false}'
    (sentence,) = call(files / "conf-full", special_word_filter=filtered).get_sentence()
    assert "full" not in sentence["text"]
    assert sentence["words"][-1]["text"] == "*" * len("full")


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a model nobody has": ({"model": "gpt-4o"}, "Model.NotExist", "gpt-4o"),
    "no format": ({"format": "flac"}, "InvalidParameter", "payload.parameters.format"),
    "a rate too low": ({"sample_rate": 7_000}, "InvalidParameter", "payload.parameters.sample_rate"),
    "a rate too high": ({"sample_rate": 96_000}, "InvalidParameter", "payload.parameters.sample_rate"),
    "no rate": ({"sample_rate": "fast"}, "InvalidParameter", "payload.parameters.sample_rate"),
    "silence too short": ({"max_sentence_silence": 199}, "InvalidParameter", "max_sentence_silence"),
    "silence too long": ({"max_sentence_silence": 6_001}, "InvalidParameter", "max_sentence_silence"),
    "no threshold": ({"speech_noise_threshold": 1.5}, "InvalidParameter", "speech_noise_threshold"),
    "a language it does not know": ({"language_hints": ["zh"]}, "InvalidParameter", "language_hints"),
    "no vocabulary": ({"vocabulary": [1]}, "InvalidParameter", "vocabulary"),
    "m4a as pcm": ({"file": "m4a"}, "InvalidParameter", "MP4"),
    "mp3 as pcm": ({"file": "mp3"}, "InvalidParameter", "MP3"),
    "m4a as mp3": ({"file": "m4a", "format": "mp3"}, "InvalidParameter", "MP4"),
    "text as mp3": ({"file": "text", "format": "mp3"}, "InvalidParameter", "MP3"),
    "text as aac": ({"file": "text", "format": "aac"}, "InvalidParameter", "AAC"),
    "text as amr": ({"file": "text", "format": "amr"}, "InvalidParameter", "AMR"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_goes_wrong_with_a_file(files: Path, wrong: str) -> None:
    options, code, word = WRONG[wrong]
    result = call(**{**options, "file": files / options.get("file", "pcm")})
    assert (result.status_code, result.code) == (44, code)
    assert word in result.message
    assert result.request_id


@pytest.mark.parametrize("wrong", WRONG)
def test_what_goes_wrong_live(files: Path, wrong: str) -> None:
    options, code, word = WRONG[wrong]
    file = files / options.get("file", "pcm")
    with recognition(**{name: value for name, value in options.items() if name != "file"}) as (client, listener):
        client.start()
        with suppress(InvalidParameter):  # it may have failed by now
            client.send_audio_frame(file.read_bytes())
        listener.wait_for("close")
        client._worker.join()
        with pytest.raises(InvalidParameter):
            client.stop()
    (failure,) = listener.failures
    assert (failure.status_code, failure.code) == (44, code)
    assert word in failure.message
    assert listener.calls == ["open", "error", "close"]


def test_what_was_heard_before_a_failure_is_told(files: Path) -> None:
    """Behind an MP3 file comes what is none."""
    with recognition(format="mp3") as (client, listener):
        client.start()
        client.send_audio_frame((files / "mp3").read_bytes())
        client.send_audio_frame((files / "text").read_bytes())
        listener.wait_for("close")
    assert_sentences(listener.finals)
    assert [call for call in listener.calls if call != "event"] == ["open", "error", "close"]
    assert listener.failures[0].code == "InvalidParameter"


def test_a_wrong_key(guarded_server: ServerProcess, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_websocket_api_url", guarded_server.inference_url)
    refused = (401, 401, "Unauthorized, your api-key is invalid!")
    result = call(files / "pcm")
    assert (result.status_code, result.code, result.message) == refused
    with recognition() as (client, listener):
        client.start()
        listener.wait_for("close")
    (failure,) = listener.failures
    assert (failure.status_code, failure.code, failure.message) == refused
    assert listener.calls == ["open", "error", "close"]


def test_the_right_key(guarded_server: ServerProcess, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_websocket_api_url", f"{guarded_server.inference_url}/")
    monkeypatch.setattr(dashscope, "api_key", API_KEY)
    assert call(files / "conf-full").status_code == 200
