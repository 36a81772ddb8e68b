"""Recordings as DashScope's SDKs send them, for an answer at once: `multimodal-generation/generation`.

A message with an audio URL in, the text of it out: whole, or as server-sent events while it comes. Only maps fields:
`runtime/sources.py` has the file, `_recordings` has it transcribed, `_vendor` knows the forms.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.frontends._answer import EVENT_STREAM, Answer, Exchange
from qwen3_asr_server.frontends._bodies import json_object
from qwen3_asr_server.frontends._documents import texts
from qwen3_asr_server.frontends._multipart import MAX_PARTS
from qwen3_asr_server.frontends._recordings import Wish, language_named, transcribed, truncation_header
from qwen3_asr_server.frontends._state import AppState, State
from qwen3_asr_server.frontends._usage import text_tokens, whole_seconds
from qwen3_asr_server.frontends._vendor import (
    Frames,
    new_request_id,
    vendor_answer,
    vendor_error,
    vendor_model,
    wants_events,
)
from qwen3_asr_server.protocols._fields import Fields
from qwen3_asr_server.runtime.media import MediaLimits
from qwen3_asr_server.runtime.sources import Source, SourceLimits, fetched, source_of, unpacked
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.hotwords import SCHEMAS, context_of
from qwen3_asr_server.text.join import GrowingText
from qwen3_asr_server.text.subtitles import truncation_of
from qwen3_asr_server.text.transcript import Segment, Transcript

router = APIRouter(tags=["dashscope"])

PATH: Final = "/api/v1/services/aigc/multimodal-generation/generation"
RESULT_FORMATS: Final = ("message", "text")

_MESSAGE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "user", "assistant"]},
        "content": {
            "oneOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "text": {"type": "string", "description": "Of a system message: the context."},
                            "audio": {
                                "type": "string",
                                "description": "An http(s), data or oss:// URL, or a path on the server.",
                            },
                        },
                    },
                },
            ]
        },
    },
}
_REQUEST: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["input"],
                "properties": {
                    "model": {"type": "string", "description": "`qwen3-asr-flash` and its like mean the default."},
                    "input": {
                        "type": "object",
                        "required": ["messages"],
                        "properties": {"messages": {"type": "array", "items": _MESSAGE}},
                    },
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "asr_options": {
                                "type": "object",
                                "properties": {
                                    "language": {"type": "string", "description": "A code or an English name."},
                                    "enable_itn": {"type": "boolean", "description": "Without effect."},
                                    **SCHEMAS,
                                },
                            },
                            "incremental_output": {
                                "type": "boolean",
                                "default": False,
                                "description": "Of events: each has only what is new.",
                            },
                            "result_format": {"type": "string", "enum": list(RESULT_FORMATS), "default": "message"},
                        },
                    },
                },
            }
        }
    },
}


@dataclass(frozen=True, slots=True)
class _Call:
    """What a client asks for."""

    wish: Wish
    audio: Source
    context: str
    as_text: bool
    """Without messages: `output.text`."""
    incremental: bool


@router.post(
    PATH,
    openapi_extra={"requestBody": _REQUEST},
    responses={200: {"content": texts(EVENT_STREAM)}},
)
async def generation(request: Request, state: State) -> Response:
    """Transcribe a short recording, as DashScope's synchronous call does."""
    request_id = new_request_id()
    send_timeout_s = state.limits["send_timeout_s"]
    if not wants_events(request):
        return Answer(
            lambda exchange: _answer(exchange, state, request_id),
            lambda error: vendor_error(error, request_id),
            send_timeout_s=send_timeout_s,
        )
    frames = Frames(request_id)
    return Answer(lambda exchange: _tell(exchange, state, frames), frames.error, send_timeout_s=send_timeout_s)


async def _answer(exchange: Exchange, state: AppState, request_id: str) -> Response:
    async with _received(exchange, state) as (call, path):
        result = await transcribed(state, path, call.wish, limits=_media_limits(state))
    told = _all_of(result.transcript)
    answer = vendor_answer(_body(call, state, told, told.text, over=True), request_id)
    answer.headers.update(truncation_header(result.transcript))
    return answer


async def _tell(exchange: Exchange, state: AppState, frames: Frames) -> None:
    """Tell the text as it comes: all of it each time, or only what is new."""
    so_far = GrowingText()

    async def heard(segment: Segment) -> None:
        delta = so_far.add(segment.text)
        told = _Told(so_far.text, segment.language, segment.end)
        text = delta if call.incremental else told.text
        await exchange.write(frames.result(_body(call, state, told, text, over=False)))

    async with _received(exchange, state) as (call, path):
        result = await transcribed(state, path, call.wish, heard=heard, limits=_media_limits(state))
    told = _all_of(result.transcript)
    text = "" if call.incremental else told.text
    await exchange.write(frames.result(_body(call, state, told, text, over=True)))


@asynccontextmanager
async def _received(exchange: Exchange, state: AppState) -> AsyncIterator[tuple[_Call, Path]]:
    """Yield what a client asks for, and a path to its recording."""
    limits = state.source_limits
    limits = replace(limits, max_bytes=min(limits.max_bytes, int(state.limits["sync_max_bytes"])))
    with state.uploads.admit():
        async with AsyncExitStack() as files:
            call = await _called(exchange, state, limits, files)
            async with fetched(call.audio, limits) as path:
                yield call, path


async def _called(exchange: Exchange, state: AppState, limits: SourceLimits, files: AsyncExitStack) -> _Call:
    """Return what a client asks for; nothing else of its request is kept."""
    async with state.bodies.read(exchange, lambda body: _call(json_object(body), state)) as call:
        audio = await unpacked(call.audio, limits, files)
    return replace(call, audio=audio)


def _media_limits(state: AppState) -> MediaLimits:
    limits = state.media_limits
    return replace(limits, max_audio_s=min(limits.max_audio_s, state.limits["sync_max_s"]))


# What a client asks for


def _call(body: dict[str, Any], state: AppState) -> _Call:
    asked = Fields(body, "")
    nothing = Fields({}, "")
    parameters = asked.object("parameters") or nothing
    options = parameters.object("asr_options") or nothing
    parts = list(islice(_parts(asked.object("input") or nothing), MAX_PARTS + 1))
    if len(parts) > MAX_PARTS:
        raise InvalidValue(f"The messages have at most {MAX_PARTS} parts.", param="input.messages")
    said = [part.text("text") or "" for role, part in parts if role == "system"]
    context = context_of(options.values, *said, path="parameters.asr_options.")
    language = language_named(options.text("language") or "", "parameters.asr_options.language")
    return _Call(
        Wish(vendor_model(state.services, asked.text("model") or ""), TranscribeOptions(language, context)),
        source_of(_audio(parts)),
        context,
        as_text=parameters.choice("result_format", RESULT_FORMATS) == "text",
        incremental=parameters.flag("incremental_output") or False,
    )


def _parts(given: Fields) -> Iterator[tuple[str, Fields]]:
    """Yield the parts of all messages, each with the role of its message."""
    messages = given.values.get("messages")
    if not isinstance(messages, list):
        raise InvalidValue("A list of messages is expected, one of them with audio.", param="input.messages")
    if len(messages) > MAX_PARTS:
        raise InvalidValue(f"There are at most {MAX_PARTS} messages.", param="input.messages")
    for number, each in enumerate(messages):
        message = Fields.of(each, f"input.messages[{number}]")
        role = message.text("role") or ""
        match message.values.get("content"):
            case str(text):
                yield role, Fields({"text": text}, message.place("content"))
            case list(parts):
                for part in parts:
                    yield role, Fields.of(part, message.place("content"))
            case _:
                raise InvalidValue("A text or a list of parts is expected.", param=message.place("content"))


def _audio(parts: list[tuple[str, Fields]]) -> str:
    """Return where the recording is that the user's messages name."""
    found = [audio for role, part in parts if role == "user" for audio in _audios(part)]
    if len(found) != 1:
        raise InvalidValue(
            f"The user's messages have {len(found)} recordings: send one, as audio.", param="input.messages"
        )
    return found[0]


def _audios(part: Fields) -> list[str]:
    if isinstance(part.values.get("audio"), list):
        return part.texts("audio") or []
    audio = part.text("audio")
    return [] if audio is None else [audio]


# What it is told


@dataclass(frozen=True, slots=True)
class _Told:
    """What is known of a recording."""

    text: str = ""
    language: str | None = None
    samples: int = 0
    """How much of it was heard."""
    truncation: dict[str, bool] = field(default_factory=dict)
    """Said at the end, where the file ended before it should."""


def _all_of(transcript: Transcript) -> _Told:
    return _Told(transcript.text, transcript.language, transcript.duration, truncation_of(transcript))


def _body(call: _Call, state: AppState, told: _Told, text: str, *, over: bool) -> dict[str, Any]:
    """Return output and usage.

    Args:
        call: what is wanted.
        state: of the application.
        told: everything so far.
        text: what stands in this answer or event.
        over: whether it is the last.
    """
    finish_reason = "stop" if over else "null"  # the vendor writes the word
    usage = {
        "input_tokens_details": {"text_tokens": text_tokens(call.context)},
        "output_tokens_details": {"text_tokens": text_tokens(told.text)},
        "seconds": whole_seconds(told.samples),
    }
    if call.as_text:
        return {"output": {"text": text, "finish_reason": finish_reason, **told.truncation}, "usage": usage}
    info = {"type": "audio_info", "language": told.language, "emotion": state.emotion}
    message = {
        "role": "assistant",
        "content": [{"text": text}],
        "annotations": [{name: value for name, value in info.items() if value}],
    }
    choices = [{"finish_reason": finish_reason, "message": message}]
    return {"output": {"choices": choices, **told.truncation}, "usage": usage}
