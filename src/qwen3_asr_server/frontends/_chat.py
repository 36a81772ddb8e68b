"""A chat request that is really a recording to transcribe, taken apart.

    messages: a system message ─▶ context     one `input_audio` or `audio_url` ─▶ source
    asr_options, at the top or within a literal `extra_body` ─▶ language, hotwords

Everything else that chat models read (`temperature`, `max_tokens`, `tools`, text beside the audio, …) says nothing to
a recogniser and is not looked at. Knows no HTTP and writes no answer; called by `openai_chat`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.frontends._multipart import MAX_PARTS
from qwen3_asr_server.frontends._recordings import language_named
from qwen3_asr_server.protocols._fields import Fields
from qwen3_asr_server.runtime.sources import DataUrl, Source, source_of
from qwen3_asr_server.text.hotwords import context_of

INPUT_AUDIO: Final = "input_audio"
AUDIO_URL: Final = "audio_url"
_MISPRINT: Final = "audio url"
"""How `audio_url` is spelt in a listing that many have copied."""
_PARTS: Final = ("text", INPUT_AUDIO, AUDIO_URL, _MISPRINT)
_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_SAID_BEFOREHAND: Final = frozenset({"system", "developer"})
_OPTIONS: Final = "asr_options"

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""Begins a URL and, as it has a colon, no base64."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is wanted of which recording."""

    model: str
    """As the client names it; empty for none."""
    source: Source
    by_audio_url: bool
    """It came in an `audio_url`, as clients of plain model servers send it."""
    wants_text: bool
    """It asks for the response format `text`."""
    language: str | None
    context: str
    stream: bool
    include_usage: bool
    """At the end of a stream."""


def chat_request(values: Mapping[str, Any]) -> ChatRequest:
    """Return what a client asks for.

    Args:
        values: the JSON object that it sent.

    Raises:
        InvalidValue: a field is wrong, or there is not exactly one recording.
    """
    body = Fields(values, "")
    messages = list(_messages(body))
    texts = [text for message in messages for text in _texts(message)]
    audios = [audio for message in messages for audio in _audios(message)]
    if not audios:
        raise InvalidValue("There is no audio in messages: send one input_audio or audio_url.", param="messages")
    if len(audios) > 1:
        raise InvalidValue(f"There are {len(audios)} audios in messages: send one at a time.", param="messages")
    ((source, by_audio_url),) = audios
    options = _options(body)
    response_format = body.object("response_format")
    stream_options = body.object("stream_options")
    return ChatRequest(
        model=body.text("model") or "",
        source=source,
        by_audio_url=by_audio_url,
        wants_text=response_format is not None and response_format.choice("type", ("text",)) is not None,
        language=language_named(options.text("language") or "", f"{_OPTIONS}.language"),
        context=context_of(options.values, *texts, path=f"{_OPTIONS}."),
        stream=body.flag("stream") or False,
        include_usage=stream_options is not None and stream_options.flag("include_usage") is True,
    )


def _options(body: Fields) -> Fields:
    """Return the options of the recogniser: those at the top count, where a client gives both."""
    found: dict[str, Any] = {}
    for options in (body.object("extra_body", _OPTIONS), body.object(_OPTIONS)):
        found |= options.values if options is not None else {}
    return Fields(found, _OPTIONS)


def _messages(body: Fields) -> Iterator[Fields]:
    messages = body.values.get("messages")
    if not isinstance(messages, list):
        raise InvalidValue("messages is a list of messages.", param="messages")
    if len(messages) > MAX_PARTS:
        raise InvalidValue(f"There are at most {MAX_PARTS} messages.", param="messages")
    for number, message in enumerate(messages):
        yield Fields.of(message, f"messages[{number}]")


def _texts(message: Fields) -> Iterator[str]:
    """Yield what a message says beforehand about the audio."""
    if message.choice("role", _ROLES) in _SAID_BEFOREHAND:
        for part in _parts(message):
            yield part.text("text") or ""


def _audios(message: Fields) -> Iterator[tuple[Source, bool]]:
    """Yield the recordings in a message, and whether each came in an `audio_url`."""
    for part in _parts(message):
        kind = part.choice("type", _PARTS) or next((name for name in _PARTS if part.has(name)), "")
        match kind:
            case "input_audio":
                yield _sent(_demanded(part.object(INPUT_AUDIO), part.place(INPUT_AUDIO), "data")), False
            case "audio_url" | "audio url":
                name = _MISPRINT if part.has(_MISPRINT) else AUDIO_URL
                value = part.values.get(name)
                url = value if isinstance(value, str) else _demanded(part.object(name), part.place(name), "url")
                yield source_of(url), True
            case "text":
                pass
            case _:
                raise InvalidValue("A part of a message has a type, such as input_audio.", param=part.place("type"))


def _parts(message: Fields) -> Iterator[Fields]:
    place = message.place("content")
    match message.values.get("content"):
        case None:
            return
        case str(text):
            yield Fields({"type": "text", "text": text}, place)
        case list(parts) if len(parts) > MAX_PARTS:
            raise InvalidValue(f"A message has at most {MAX_PARTS} parts.", param=place)
        case list(parts):
            for number, part in enumerate(parts):
                yield Fields.of({"type": "text", "text": part} if isinstance(part, str) else part, f"{place}[{number}]")
        case _:
            raise message.refusal("content", "A string or an array of parts is expected.")


def _demanded(audio: Fields | None, place: str, name: str) -> str:
    text = audio.text(name) if audio is not None else None
    if not text:
        raise InvalidValue(f"{place}.{name} is missing.", param=f"{place}.{name}")
    return text


def _sent(data: str) -> Source:
    """Return the source that an `input_audio` holds: a URL of any kind, or base64 alone as OpenAI's clients send it."""
    return source_of(data) if _SCHEME.match(data) else DataUrl(f"data:;base64,{data}")
