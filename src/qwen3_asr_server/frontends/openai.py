"""Recordings as OpenAI's clients send them: `POST /v1/audio/transcriptions`, and the models that they ask for.

Only maps fields: `_form` reads them, `_recordings` has the file transcribed. Errors are in OpenAI's form (`_errors`).
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.frontends._answer import Answer, Exchange
from qwen3_asr_server.frontends._documents import event_stream, texts
from qwen3_asr_server.frontends._errors import openai_error
from qwen3_asr_server.frontends._form import Fields, received
from qwen3_asr_server.frontends._recordings import (
    Wish,
    demand_word_times,
    language_named,
    model_named,
    transcribed,
    truncation_header,
)
from qwen3_asr_server.frontends._state import AppState, State
from qwen3_asr_server.frontends._usage import tokens_of
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.context import WORD_CHARS
from qwen3_asr_server.text.hotwords import BEFOREHAND, MAX_HOTWORDS, SCHEMAS, context_of, hotwords_of
from qwen3_asr_server.text.join import GrowingText
from qwen3_asr_server.text.subtitles import as_json, as_srt, as_text, as_verbose_json, as_vtt, seconds_of, truncation_of
from qwen3_asr_server.text.transcript import Segment, Transcript

router = APIRouter(tags=["openai"])

FORMATS: Final = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES: Final = ("segment", "word")
DEFAULT_MODELS: Final = frozenset(
    {
        *("whisper-1", "gpt-transcribe", "gpt-4o-transcribe"),
        *("gpt-4o-mini-transcribe", "gpt-4o-mini-transcribe-2025-12-15"),
    }
)
"""OpenAI's own names; they stand for the default model, so that a program need not be changed."""

_TEXTS: Final[dict[str, Callable[[Transcript], str]]] = {"text": as_text, "srt": as_srt, "vtt": as_vtt}
_REQUEST: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                    "model": {"type": "string", "description": "One of /v1/models; OpenAI's names mean the default."},
                    "language": {"type": "string", "description": "A code or an English name; else it is detected."},
                    "prompt": {"type": "string", "description": "Text or words that are likely to be said."},
                    "keywords[]": {
                        "type": "array",
                        "items": {"type": "string", "maxLength": WORD_CHARS},
                        "maxItems": MAX_HOTWORDS,
                        "description": "Words that are likely to be said.",
                    },
                    **SCHEMAS,
                    "languages[]": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "A single one is taken as `language`; of several, one is detected.",
                    },
                    "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
                    "timestamp_granularities[]": {
                        "type": "array",
                        "items": {"type": "string", "enum": list(GRANULARITIES)},
                        "description": "With `verbose_json`.",
                    },
                    "stream": {"type": "boolean", "default": False, "description": "Tell the text as it comes."},
                    "temperature": {"type": "number", "description": "Without effect: decoding is greedy."},
                },
            }
        }
    },
}


@router.post(
    "/v1/audio/transcriptions",
    openapi_extra={"requestBody": _REQUEST},
    responses={200: {"content": texts("text/plain") | event_stream()}},
)
async def transcriptions(state: State) -> Response:
    """Transcribe a recording of any length in any usual audio or video format."""
    return Answer(
        lambda exchange: _transcribe(exchange, state), openai_error, send_timeout_s=state.limits["send_timeout_s"]
    )


@router.get("/compatible-mode/v1/models")
@router.get("/v1/models")
async def models(state: State) -> dict[str, Any]:
    """List the models of this server."""
    return {"object": "list", "data": [_model(name) for name in state.services.models.names]}


@router.get("/compatible-mode/v1/models/{model:path}")
@router.get("/v1/models/{model:path}")
async def model(model: str, state: State) -> dict[str, Any]:
    """Describe a model, if this server has it."""
    return _model(model_named(state.services, model))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "qwen3-asr-server"}


async def _transcribe(exchange: Exchange, state: AppState) -> Response | None:
    with state.uploads.admit():
        async with received(exchange, state.source_limits, None) as form:
            if form.path is None:
                raise InvalidValue("There is no file.", param="file")
            wish, kind, granularities = _wish(form.fields, state)
            if form.fields.flag("stream"):
                await _tell(exchange, state, form.path, wish)
                return None
            result = await transcribed(state, form.path, wish)
            # On a thread: hours of speech take a second to write down, in which live sessions would stand still.
            return await asyncio.to_thread(_response, result.transcript, kind, granularities)


def _wish(fields: Fields, state: AppState) -> tuple[Wish, str, frozenset[str]]:
    """Return what is wanted, in which format, and with the times of what."""
    kind = fields.choice("response_format", FORMATS)
    granularities = frozenset(_listed(fields, "timestamp_granularities"))
    if granularities - set(GRANULARITIES):
        raise InvalidValue("timestamp_granularities are word and segment.", param="timestamp_granularities")
    if "word" in granularities and kind != "verbose_json":
        raise InvalidValue("Word times come with verbose_json only.", param="timestamp_granularities")
    if fields.flag("stream") and kind not in ("json", "text"):
        raise InvalidValue("A stream goes with json or text.", param="stream")
    model = model_named(state.services, fields.text("model"), DEFAULT_MODELS)
    words = "word" in granularities
    if words:
        demand_word_times(state.services, model, "timestamp_granularities")
    language = language_named(fields.text("language") or _only_language(fields))
    return Wish(model, TranscribeOptions(language, _context(fields), words=words)), kind, granularities


def _only_language(fields: Fields) -> str:
    """Return the one language that is possible; empty where there are several, or none is named."""
    possible = _listed(fields, "languages")
    for language in possible:
        language_named(language, "languages")
    return possible[0] if len(possible) == 1 else ""


def _context(fields: Fields) -> str:
    given = {name: fields.text(name) for name in BEFOREHAND}
    return context_of(given, fields.text("prompt"), hotwords=hotwords_of(_listed(fields, "keywords"), "keywords"))


def _listed(fields: Fields, name: str) -> list[str]:
    """Return the values of a list: clients write its name with brackets or without."""
    return fields.all(f"{name}[]") + fields.all(name)


def _response(transcript: Transcript, kind: str, granularities: frozenset[str]) -> Response:
    headers = truncation_header(transcript)
    if kind in _TEXTS:
        return PlainTextResponse(_TEXTS[kind](transcript), headers=headers)
    if kind == "json":
        body = as_json(transcript) | {"languages": _languages(transcript)}
    else:
        segments = "segment" in granularities or not granularities
        body = as_verbose_json(transcript, words="word" in granularities, segments=segments)
    usage = {"type": "duration", "seconds": seconds_of(transcript.duration)}
    return JSONResponse(body | {"usage": usage}, headers=headers)


async def _tell(exchange: Exchange, state: AppState, path: Path, wish: Wish) -> None:
    """Tell the text as it comes: the pieces of it make up the whole."""
    told = GrowingText()

    async def heard(segment: Segment) -> None:
        await exchange.tell({"type": "transcript.text.delta", "delta": told.add(segment.text)})

    result = await transcribed(state, path, wish, heard=heard)
    transcript = result.transcript
    await exchange.tell_long(
        lambda: {
            "type": "transcript.text.done",
            "text": transcript.text,
            "languages": _languages(transcript),
            "usage": _usage(transcript, wish.options.context),
            **truncation_of(transcript),
        }
    )


def _languages(transcript: Transcript) -> list[dict[str, str]]:
    return [{"code": transcript.language}] if transcript.language else []


def _usage(transcript: Transcript, context: str) -> dict[str, Any]:
    """Return tokens: in a stream, OpenAI's clients know no other usage."""
    tokens = tokens_of(transcript, context)
    return {
        "type": "tokens",
        "input_tokens": tokens.taken,
        "input_token_details": {"audio_tokens": tokens.audio, "text_tokens": tokens.context},
        "output_tokens": tokens.written,
        "total_tokens": tokens.total,
    }
