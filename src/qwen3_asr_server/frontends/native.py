"""Recordings over plain HTTP: `POST /api/transcribe`, and what it can be asked for.

A form with a file, or JSON with the address of one, becomes text, subtitles or JSON; on request the way there is
told as server-sent events. Only maps fields: `_form` reads them, `_recordings` has the file transcribed.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from qwen3_asr_server import __version__
from qwen3_asr_server.frontends._answer import Answer, Exchange
from qwen3_asr_server.frontends._documents import event_stream, texts
from qwen3_asr_server.frontends._errors import error_response
from qwen3_asr_server.frontends._form import Fields, Form, audio_in, received
from qwen3_asr_server.frontends._recordings import (
    TIME_HEADERS,
    Result,
    Wish,
    demand_word_times,
    language_name,
    language_named,
    model_named,
    transcribed,
    truncation_header,
)
from qwen3_asr_server.frontends._state import AppState, State
from qwen3_asr_server.frontends.ops import engine_as_json, gpus_of, queue_of, reason_of, status_of
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.hotwords import BEFOREHAND, SCHEMAS, context_of
from qwen3_asr_server.text.languages import DIALECTS, find
from qwen3_asr_server.text.subtitles import as_srt, as_text, as_verbose_json, as_vtt, seconds_of, truncation_of
from qwen3_asr_server.text.transcript import Segment, Transcript

router = APIRouter(tags=["recordings"])

PROGRESS_INTERVAL_S: Final = 1.0
FORMATS: Final = ("json", "text", "srt", "vtt", "verbose_json")
DTYPES: Final = ("", "bfloat16", "float16")

_TEXTS: Final[dict[str, tuple[Callable[[Transcript], str], str]]] = {
    "text": (as_text, "text/plain"),
    "srt": (as_srt, "application/x-subrip"),
    "vtt": (as_vtt, "text/vtt"),
}

_TEXT_ANSWERS: Final = texts(*(media_type for _, media_type in _TEXTS.values()))

_FIELDS: Final[dict[str, Any]] = {
    "url": {
        "type": "string",
        "minLength": 1,
        "description": "Instead of a file: an http(s) URL, a data URL or a path on the server.",
    },
    "language": {"type": "string", "default": "auto", "description": "A code or an English name."},
    "model": {"type": "string", "description": "One of the models that /api/status lists; else the default."},
    "return_timestamps": {"type": "boolean", "default": False, "description": "With the times of words."},
    "format": {"type": "string", "enum": list(FORMATS), "default": "json"},
    "stream": {"type": "boolean", "default": False, "description": "Tell progress as server-sent events."},
    "context": {"type": "string", "description": "Text or words that are likely to be said."},
    **SCHEMAS,
    "initial_context": {"type": "string", "description": "Text before the recording."},
    "use_previous_context": {"type": "boolean", "default": False, "description": "Carry each text into the next."},
    "split_channels": {"type": "boolean", "default": False, "description": "A transcript for each channel."},
    "dtype": {"type": "string", "enum": list(DTYPES[1:]), "description": "Without effect: MODEL_DTYPE decides."},
}
_FILE: Final[dict[str, Any]] = {"file": {"type": "string", "contentMediaType": "application/octet-stream"}}
_REQUEST: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": _FILE | _FIELDS,
                "oneOf": [{"required": ["file"]}, {"required": ["url"]}],
            }
        },
        "application/json": {"schema": {"type": "object", "properties": _FIELDS, "required": ["url"]}},
    },
}


@router.post(
    "/api/transcribe",
    openapi_extra={"requestBody": _REQUEST},
    responses={200: {"content": _TEXT_ANSWERS | event_stream("progress", "segment", "result", "error")}},
)
async def transcribe(state: State) -> Response:
    """Transcribe a recording of any length in any usual audio or video format."""
    return Answer(
        lambda exchange: _transcribe(exchange, state),
        error_response,
        failure_name="error",
        send_timeout_s=state.limits["send_timeout_s"],
    )


@router.get("/api/languages")
async def languages(state: State) -> dict[str, Any]:
    """List the languages that may be asked for, and the dialects that are heard with them, by their English names."""
    return _languages(state)


@router.get("/api/status")
async def status(state: State) -> dict[str, Any]:
    """Say which model is loaded, which there are, and what they know."""
    services = state.services
    known = _languages(state)
    return {
        "status": status_of(state),
        "reason": reason_of(state),
        "version": __version__,
        "engine": engine_as_json(services.engine_info),
        "model": services.model_status(),
        "available_models": list(services.models.names),
        "supported_languages": known["languages"],
        "dialects": known["dialects"],
        "recordings": {"open": len(services.recordings), "max": state.limits["max_recordings"]},
        "sessions": {"open": services.admission.in_use, "max": state.limits["max_sessions"]},
        "queue": queue_of(state),
        "gpu": await gpus_of(state),
    }


def _languages(state: AppState) -> dict[str, Any]:
    offered = state.services.engine_info.languages
    found = sorted((language.name, code) for code in offered if (language := find(code)))
    return {
        "languages": [name for name, _ in found],
        "dialects": [dialect.name for dialect in DIALECTS if dialect.dialect_of in offered],
        "codes": dict(found),
    }


async def _transcribe(exchange: Exchange, state: AppState) -> Response | None:
    began = time.monotonic()
    limits = state.source_limits
    with state.uploads.admit():
        async with (
            received(exchange, limits, state.bodies) as form,
            audio_in(form, limits) as path,
        ):
            wish, kind = _wish(form, state), form.fields.choice("format", FORMATS)
            if not form.fields.flag("stream"):
                result = await transcribed(state, path, wish)
                # On a thread: hours of speech take a second to write down, in which live sessions would stand still.
                return await asyncio.to_thread(_response, result, wish, kind, time.monotonic() - began)
            events = _Events(exchange)
            result = await transcribed(state, path, wish, events.note, events.heard)
            await events.finish(result, wish, kind)
            return None


def _wish(form: Form, state: AppState) -> Wish:
    fields = form.fields
    model = model_named(state.services, fields.text("model"))
    fields.choice("dtype", DTYPES)
    words = fields.flag("return_timestamps")
    if words:
        demand_word_times(state.services, model, "return_timestamps")
    return Wish(model, _options(fields, words=words), fields.flag("split_channels"))


def _options(fields: Fields, *, words: bool) -> TranscribeOptions:
    return TranscribeOptions(
        language=language_named(fields.text("language")),
        context=context_of({name: fields.text(name) for name in BEFOREHAND}, fields.text("context")),
        initial_context=fields.text("initial_context"),
        use_previous_context=fields.flag("use_previous_context"),
        words=words,
    )


def _response(result: Result, wish: Wish, kind: str, total_s: float) -> Response:
    seconds = (result.load_s, result.process_s, total_s)
    headers = {name: f"{value:.3f}" for name, value in zip(TIME_HEADERS, seconds, strict=True)}
    headers |= truncation_header(result.transcript)
    if kind in _TEXTS:
        render, media_type = _TEXTS[kind]
        return PlainTextResponse(render(result.transcript), headers=headers, media_type=media_type)
    return JSONResponse(_json(result, wish, kind), headers=headers)


def _result(result: Result, wish: Wish, kind: str) -> dict[str, Any]:
    if kind in _TEXTS:
        return {"content": _TEXTS[kind][0](result.transcript)} | truncation_of(result.transcript)
    return _json(result, wish, kind)


def _json(result: Result, wish: Wish, kind: str) -> dict[str, Any]:
    transcript = result.transcript
    if kind == "verbose_json":
        return as_verbose_json(transcript, words=wish.options.words, channels=wish.split_channels)
    duration_s = seconds_of(transcript.duration)
    body: dict[str, Any] = {
        "text": transcript.text,
        "language": language_name(transcript.language),
        "duration_seconds": duration_s,
        "process_time_seconds": round(result.process_s, 3),
        "rtf": round(result.process_s / duration_s, 4) if duration_s else 0.0,
    }
    if wish.options.words:
        body["timestamps"] = [
            {"text": word.text, "start": seconds_of(word.start), "end": seconds_of(word.end)}
            | ({"channel_id": channel} if wish.split_channels else {})
            for channel, word in transcript.words
        ]
    if wish.split_channels:
        body["channels"] = [
            {"channel_id": channel, "text": transcript.of_channel(channel).text} for channel in transcript.channels
        ]
        body["segments"] = [_segment(segment) for segment in transcript.segments]
    return body | truncation_of(transcript)


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "text": segment.text,
        "start": seconds_of(segment.start),
        "end": seconds_of(segment.end),
        "channel_id": segment.channel,
        "language": language_name(segment.language),
    }


class _Events:
    """What a client is told on the way: `progress` every second, each `segment`, then the `result`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._latest: tuple[float, float | None] = (0.0, None)
        self._ticking: asyncio.Task[None] | None = None

    def note(self, done_s: float, total_s: float | None) -> None:
        """Take note of how far it has come; the first time, begin to tell it."""
        self._latest = (done_s, total_s)
        if self._ticking is None:
            self._ticking = self._exchange.beside(self._tick())

    async def heard(self, segment: Segment) -> None:
        """Tell a segment."""
        await self._exchange.tell(_segment(segment), "segment")

    async def finish(self, result: Result, wish: Wish, kind: str) -> None:
        """Tell the result: JSON as without events, or an object with the text of another format."""
        if self._ticking is not None:
            self._ticking.cancel()
        await self._tell_progress()
        await self._exchange.tell_long(lambda: _result(result, wish, kind), "result")

    async def _tick(self) -> None:
        while True:
            await self._tell_progress()
            await asyncio.sleep(PROGRESS_INTERVAL_S)

    async def _tell_progress(self) -> None:
        done_s, total_s = self._latest
        total = None if total_s is None else round(total_s, 3)
        await self._exchange.tell({"done_seconds": round(done_s, 3), "total_seconds": total}, "progress")
