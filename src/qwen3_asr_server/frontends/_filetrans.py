"""The vendor's two ways to tell of transcribed files: what a poll answers, and what a result file holds.

    qwen3-asr-flash-filetrans   one `file_url`     →  `result`, sentences from 0, with language and emotion
    fun-asr, paraformer         many `file_urls`   →  `results` and `task_metrics`, sentences from 1

Pure functions from what `runtime/jobs.py` knows to plain values. Used by `dashscope_async`.
"""

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from qwen3_asr_server.domain import ms_of_samples
from qwen3_asr_server.runtime.job_results import JobResult
from qwen3_asr_server.runtime.job_values import Failure, Job, JobFile, JobState, JobStatus
from qwen3_asr_server.text.join import join_texts
from qwen3_asr_server.text.special_words import SpecialWords, finished, timed_words
from qwen3_asr_server.text.subtitles import truncation_of
from qwen3_asr_server.text.transcript import Segment

ONE_FILE: Final = "file_url"
MANY_FILES: Final = "file_urls"
"""The forms of jobs, named after the fields that choose them."""

CODES: Final[dict[Failure, str]] = {
    Failure.MISSING: "FILE_404_NOT_FOUND",
    Failure.FORBIDDEN: "FILE_403_FORBIDDEN",
    Failure.UNREACHABLE: "FILE_DOWNLOAD_FAILED",
    Failure.REFUSED: "FILE_DOWNLOAD_FAILED",
    Failure.TOO_LARGE: "FILE_TOO_LARGE",
    Failure.TOO_LONG: "AUDIO_DURATION_TOO_LONG",
    Failure.UNREADABLE: "DECODE_ERROR",
    Failure.SILENT: "SUCCESS_WITH_NO_VALID_FRAGMENT",
    Failure.WORDLESS: "ASR_RESPONSE_HAVE_NO_WORDS",
    Failure.UNSUITABLE: "InvalidParameter",
    Failure.ENGINE: "InternalError",
    Failure.CRASHED: "InternalError",
    Failure.INTERNAL: "InternalError",
}

_CONTAINERS: Final = {"mov": "mp4", "matroska": "mkv"}
"""Usual names of containers whose first name at FFmpeg is another."""

UrlOf = Callable[[str], str]
"""Returns where a result is to be had, by its name."""


def task_of(status: JobStatus, url_of: UrlOf) -> dict[str, Any]:
    """Return `output` and `usage` of the answer to a poll."""
    job = status.job
    output: dict[str, Any] = task_line(job)
    if job.state is JobState.PENDING:
        output["queue_position"] = job.ahead + 1
    if not job.state.over:
        total_s = None if status.total_s is None else round(status.total_s, 3)
        output["progress"] = {"done_seconds": round(status.done_s, 3), "total_seconds": total_s}
    if job.state is JobState.FAILED:
        output |= _failure(job.files[0])
    one = job.form == ONE_FILE
    output |= _one_result(job, url_of) if one else _all_results(job, url_of)
    heard_s = [math.ceil(file.duration_s) for file in job.files if file.state is JobState.SUCCEEDED]
    usage = {"usage": {"seconds" if one else "duration": sum(heard_s)}} if heard_s else {}
    return {"output": output, **usage}


def task_line(job: Job) -> dict[str, Any]:
    """Return what every answer says of a job."""
    times = {"submit_time": job.submitted, "scheduled_time": job.begun, "end_time": job.ended}
    told = {name: _time(seconds) for name, seconds in times.items() if seconds is not None}
    return {"task_id": job.id, "task_status": job.state.value, **told}


def result_file(result: JobResult, emotion: str) -> dict[str, Any]:
    """Return what a result file holds.

    Args:
        result: what was heard.
        emotion: of each sentence; empty leaves it out.
    """
    kind, transcript = result.kind, result.transcript
    one = result.form == ONE_FILE
    words = _special_words(result)
    transcripts = []
    for channel in result.channels:
        segments = transcript.of_channel(channel).segments
        sentences = [
            _sentence(segment, number, words, emotion, result)
            for number, segment in enumerate(segments, 0 if one else 1)
        ]
        spoken = sum(segment.end - segment.start for segment in segments)
        transcripts.append(
            {
                "channel_id": channel,
                **({} if one else {"content_duration_in_milliseconds": ms_of_samples(spoken)}),
                "text": join_texts([sentence["text"] for sentence in sentences]),
                "sentences": sentences,
            }
        )
    file = {"file_url": result.url, **truncation_of(transcript)}
    if one:
        return {
            **file,
            "audio_info": {"format": _container(kind.container), "sample_rate": kind.rate},
            "transcripts": transcripts,
        }
    properties = {
        "audio_format": kind.codec,
        "channels": list(range(kind.channels)),
        "original_sampling_rate": kind.rate,
        "original_duration_in_milliseconds": ms_of_samples(transcript.duration),
    }
    return {**file, "properties": properties, "transcripts": transcripts}


# Polls


def _one_result(job: Job, url_of: UrlOf) -> dict[str, Any]:
    (file,) = job.files
    return {"result": {"transcription_url": url_of(file.result)}} if file.result else {}


def _all_results(job: Job, url_of: UrlOf) -> dict[str, Any]:
    states = [file.state for file in job.files]
    counts = {state.value: states.count(state) for state in (JobState.SUCCEEDED, JobState.FAILED)}
    told: dict[str, Any] = {"task_metrics": {"TOTAL": len(states), **counts}}
    if job.state.over:
        told["results"] = [_subtask(file, url_of) for file in job.files]
    return told


def _subtask(file: JobFile, url_of: UrlOf) -> dict[str, Any]:
    result = {"transcription_url": url_of(file.result)} if file.result else {}
    return {"file_url": file.url, **result, **_failure(file), "subtask_status": file.state.value}


def _failure(file: JobFile) -> dict[str, Any]:
    return {} if file.failure is None else {"code": CODES[file.failure], "message": file.message}


def _time(seconds: float) -> str:
    """Return a time as the vendor writes it: on the clock of the place, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


# Result files


def _sentence(segment: Segment, number: int, words: SpecialWords, emotion: str, result: JobResult) -> dict[str, Any]:
    sentence: dict[str, Any] = {
        "sentence_id": number,
        "begin_time": ms_of_samples(segment.start),
        "end_time": ms_of_samples(segment.end),
        "text": finished(words.marked(segment.text)),
    }
    if result.form == ONE_FILE:
        sentence |= {"language": segment.language} if segment.language else {}
        sentence |= {"emotion": emotion} if emotion else {}
    if result.wish.words or result.form == MANY_FILES:
        sentence["words"] = list(_words(segment, words))
    return sentence


def _words(segment: Segment, special: SpecialWords) -> Iterator[dict[str, Any]]:
    for word, text, punctuation in timed_words(segment.text, segment.words, special):
        times = {"begin_time": ms_of_samples(word.start), "end_time": ms_of_samples(word.end)}
        yield {**times, "text": text, "punctuation": punctuation}


def _special_words(result: JobResult) -> SpecialWords:
    details = result.wish.details
    return SpecialWords(tuple(details.get("hidden", ())), tuple(details.get("left_out", ())))


def _container(names: str) -> str:
    first = names.partition(",")[0]
    return _CONTAINERS.get(first, first)
