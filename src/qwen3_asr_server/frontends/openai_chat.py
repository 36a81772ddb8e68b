"""Recordings as chat requests: `POST /v1/chat/completions`, and the same below `/compatible-mode` as the vendor's.

One recording in, its transcript as the answer of an assistant out, whole or in chunks. There are two forms of it:

    raw    language English<asr_text>Hello.    as a plain server of the model writes it
    clean  Hello.                              with the language in `annotations`, as the vendor's service does

Raw are the answers of `/v1` to an `audio_url`, unless its client asks for the response format `text`; all others are
clean. Only maps fields: `_chat` reads them, `_recordings` has the recording transcribed.
"""

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.frontends._answer import Answer, Exchange
from qwen3_asr_server.frontends._bodies import json_object
from qwen3_asr_server.frontends._chat import ChatRequest, chat_request
from qwen3_asr_server.frontends._documents import event_stream
from qwen3_asr_server.frontends._errors import openai_error
from qwen3_asr_server.frontends._recordings import Wish, language_name, transcribed, truncation_header
from qwen3_asr_server.frontends._state import AppState, State
from qwen3_asr_server.frontends._usage import tokens_of, whole_seconds
from qwen3_asr_server.frontends._vendor import vendor_model
from qwen3_asr_server.runtime.sources import fetched, unpacked
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.hotwords import SCHEMAS
from qwen3_asr_server.text.join import GrowingText
from qwen3_asr_server.text.prompt import ASR_TEXT
from qwen3_asr_server.text.subtitles import truncation_of
from qwen3_asr_server.text.transcript import Segment, Transcript

router = APIRouter(tags=["openai"])

_STRING: Final[dict[str, Any]] = {"type": "string"}
_PART: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"type": "string", "enum": ["text", "input_audio", "audio_url"]},
        "text": _STRING,
        "input_audio": {
            "type": "object",
            "required": ["data"],
            "properties": {"data": {"type": "string", "description": "A URL or base64."}, "format": _STRING},
        },
        "audio_url": {"type": "object", "required": ["url"], "properties": {"url": _STRING}},
    },
}
_MESSAGE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "user"]},
        "content": {"anyOf": [_STRING, {"type": "array", "items": _PART}]},
    },
}
_FIELDS: Final[dict[str, Any]] = {
    "model": {"type": "string", "description": "One of the models; nothing means the default."},
    "messages": {"type": "array", "items": _MESSAGE, "description": "With one recording; a system message is context."},
    "asr_options": {
        "type": "object",
        "properties": {
            "language": {"type": "string", "description": "A code or an English name; `auto` detects it."},
            "enable_itn": {"type": "boolean", "description": "Without effect."},
            **SCHEMAS,
        },
    },
    "stream": {"type": "boolean", "default": False, "description": "Tell the text in chunks."},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "response_format": {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"type": "string", "enum": ["text"]}},
        "description": "With it the answer to an `audio_url` is text without a header.",
    },
    **{
        name: {"type": ["number", "null"], "description": "Without effect."}
        for name in ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "n")
    },
}
_REQUEST: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {"schema": {"type": "object", "required": ["messages"], "properties": _FIELDS}},
    },
}


_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {200: {"content": event_stream()}}


@router.post("/v1/chat/completions", openapi_extra={"requestBody": _REQUEST}, responses=_ANSWERS)
async def chat(state: State) -> Response:
    """Transcribe a recording that is sent as a chat message; the answer to an `audio_url` is as the model writes it."""
    return _answer(state, raw_allowed=True)


@router.post("/compatible-mode/v1/chat/completions", openapi_extra={"requestBody": _REQUEST}, responses=_ANSWERS)
async def compatible_chat(state: State) -> Response:
    """Transcribe a recording that is sent as a chat message, as the vendor does."""
    return _answer(state, raw_allowed=False)


def _answer(state: AppState, *, raw_allowed: bool) -> Answer:
    return Answer(
        lambda exchange: _complete(exchange, state, raw_allowed=raw_allowed),
        openai_error,
        send_timeout_s=state.limits["send_timeout_s"],
    )


async def _complete(exchange: Exchange, state: AppState, *, raw_allowed: bool) -> Response | None:
    limits = state.source_limits
    with state.uploads.admit():
        async with AsyncExitStack() as files:
            asked = await _received(exchange, state, files)
            model = vendor_model(state.services, asked.model)
            wish = Wish(model, TranscribeOptions(asked.language, asked.context))
            raw = raw_allowed and asked.by_audio_url and not asked.wants_text
            completion = _Completion(asked.model or wish.model, asked.context, state.emotion, raw=raw)
            path = await files.enter_async_context(fetched(asked.source, limits))
            if not asked.stream:
                result = await transcribed(state, path, wish)
                body = await asyncio.to_thread(completion.whole, result.transcript)
                return JSONResponse(body, headers=truncation_header(result.transcript))
            chunks = _Chunks(exchange, completion, include_usage=asked.include_usage)
            result = await transcribed(state, path, wish, heard=chunks.heard)
            await chunks.finish(result.transcript)
    return None


async def _received(exchange: Exchange, state: AppState, files: AsyncExitStack) -> ChatRequest:
    """Return what a client asks for; nothing else of its request is kept."""
    if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidValue("Send application/json.")
    async with state.bodies.read(exchange, lambda body: chat_request(json_object(body))) as asked:
        source = await unpacked(asked.source, state.source_limits, files)
    return replace(asked, source=source)


@dataclass(frozen=True, slots=True)
class _Completion:
    """How the answer to one request is written."""

    model: str
    """As the client named it."""
    context: str
    emotion: str
    raw: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, transcript: Transcript) -> dict[str, Any]:
        """Return the answer."""
        content = self.header(transcript.language if transcript.text else None) + transcript.text
        message = {"role": "assistant", "content": content, **self.annotations(transcript.language)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = {"usage": self.usage(transcript)}
        return self._body("chat.completion", [choice]) | usage | truncation_of(transcript)

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """Return a piece of the answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._body("chat.completion.chunk", [choice])

    def last_chunk(self, transcript: Transcript) -> dict[str, Any]:
        """Return the piece that holds no text but the usage."""
        return self._body("chat.completion.chunk", []) | {"usage": self.usage(transcript)}

    def header(self, language: str | None) -> str:
        """Return what the model writes before a text; nothing where the answer is clean."""
        return f"language {language_name(language)}{ASR_TEXT}" if self.raw else ""

    def annotations(self, language: str | None) -> dict[str, Any]:
        """Return what a message says of the audio, where the answer is clean."""
        if self.raw:
            return {}
        emotion = {"emotion": self.emotion} if self.emotion else {}
        return {"annotations": [{"type": "audio_info", "language": language, **emotion}]}

    def usage(self, transcript: Transcript) -> dict[str, Any]:
        """Return what it took."""
        tokens = tokens_of(transcript, self.context)
        return {
            "prompt_tokens": tokens.taken,
            "completion_tokens": tokens.written,
            "total_tokens": tokens.total,
            "prompt_tokens_details": {"audio_tokens": tokens.audio, "text_tokens": tokens.context},
            "completion_tokens_details": {"text_tokens": tokens.written},
            "seconds": whole_seconds(transcript.duration),
        }

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


class _Chunks:
    """An answer told as it comes: the role, a piece for each segment, why it ends, the usage on request.

    Nothing is told before the first segment is there, so that what fails until then has its status.
    """

    def __init__(self, exchange: Exchange, completion: _Completion, *, include_usage: bool) -> None:
        self._exchange = exchange
        self._completion = completion
        self._no_usage = {"usage": None} if include_usage else {}
        self._include_usage = include_usage
        self._told = GrowingText()

    async def heard(self, segment: Segment) -> None:
        """Tell a segment."""
        head = "" if self._told.text else await self._begin(segment.language)
        content = head + self._told.add(segment.text)
        await self._tell({"content": content, **self._completion.annotations(segment.language)})

    async def finish(self, transcript: Transcript) -> None:
        """Tell the rest."""
        if not self._told.text:
            await self._tell({"content": await self._begin(None), **self._completion.annotations(None)})
        await self._exchange.tell(self._completion.chunk({}, "stop") | self._no_usage | truncation_of(transcript))
        if self._include_usage:
            await self._exchange.tell_long(lambda: self._completion.last_chunk(transcript))
        await self._exchange.write("data: [DONE]\n\n")

    async def _begin(self, language: str | None) -> str:
        await self._tell({"role": "assistant", "content": ""})
        return self._completion.header(language)

    async def _tell(self, delta: dict[str, Any]) -> None:
        await self._exchange.tell(self._completion.chunk(delta) | self._no_usage)
