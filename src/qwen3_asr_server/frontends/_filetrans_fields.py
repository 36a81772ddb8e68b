"""The vendor's request to transcribe files, as its SDKs send it, read into a job.

Fields without a meaning here (`enable_itn`, `diarization_enabled`, `vocabulary_id` …) are passed over, as are unknown
ones. Knows no HTTP; used by `dashscope_async`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from qwen3_asr_server.errors import InvalidValue, UnknownModel
from qwen3_asr_server.frontends._filetrans import MANY_FILES, ONE_FILE
from qwen3_asr_server.frontends._recordings import demand_word_times, language_named, model_named
from qwen3_asr_server.runtime.job_values import JobWish
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.runtime.sources import DataUrl, source_of
from qwen3_asr_server.text.hotwords import SCHEMAS, context_of
from qwen3_asr_server.text.languages import demand_known
from qwen3_asr_server.text.special_words import special_words_of

MAX_URLS: Final = 100
MAX_URL_CHARS: Final = 8192
_MAX_CHANNEL: Final = 99
_VENDOR_MODELS: Final = re.compile(
    r"(qwen3-asr-flash|qwen-audio-[\d.]+-asr-flash|fun-asr|paraformer|sensevoice)(-[\w.-]*)?", re.IGNORECASE
)
"""The vendor's names for models of files; they stand for the default model, as its realtime names do."""

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        "model": {"type": "string", "description": "A name of this server; the vendor's names mean the default."},
        "input": {
            "type": "object",
            "properties": {
                ONE_FILE: {"type": "string", "description": "An http(s) or oss:// URL, or a path on the server."},
                MANY_FILES: {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_URLS},
            },
            "description": "One of the two; it chooses the form of the answers.",
        },
        "parameters": {
            "type": "object",
            "properties": {
                "language": {"type": "string", "description": "A code or an English name; else it is detected."},
                "language_hints": {"type": "array", "items": {"type": "string"}},
                "enable_words": {"type": "boolean", "description": "With the times of words."},
                "channel_id": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                "special_word_filter": {"type": "string", "description": "JSON: words to hide or to leave out."},
                **SCHEMAS,
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a client asks for."""

    model: str
    """As it named it."""
    form: str
    urls: tuple[str, ...]
    wish: JobWish


def request_of(body: Mapping[str, Any], services: Services) -> JobRequest:
    """Return the request in a body.

    Raises:
        InvalidValue: a field is missing or wrong.
        UnknownModel: there is no such model.
    """
    model = _text(body, "model", "model")
    if not model:
        raise InvalidValue("There is no model.", param="model")
    form, urls = _files(_object(body, "input", "input"))
    parameters = _object(body, "parameters", "parameters")
    return JobRequest(model, form, urls, _wish(parameters, _known_model(services, model), form, services))


def _files(fields: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    match fields:
        case {"file_url": str(url)} if url and not fields.get(MANY_FILES):
            form, urls = ONE_FILE, [url]
        case {"file_urls": [*urls]} if urls and not fields.get(ONE_FILE):
            form = MANY_FILES
        case _:
            raise InvalidValue("input has either file_url, a string, or file_urls, a list.", param="input")
    if len(urls) > MAX_URLS:
        raise InvalidValue(f"A job has at most {MAX_URLS} files.", param=f"input.{form}")
    for url in urls:
        if len(_checked(url, f"input.{form}")) > MAX_URL_CHARS:
            raise InvalidValue(f"A URL has at most {MAX_URL_CHARS} characters.", param=f"input.{form}")
        if isinstance(source_of(url), DataUrl):
            raise InvalidValue("A job takes no data URLs: upload the file.", param=f"input.{form}")
    return form, tuple(urls)


def _wish(fields: Mapping[str, Any], model: str, form: str, services: Services) -> JobWish:
    enabled = fields.get("enable_words")
    if not isinstance(enabled, bool | None):
        raise InvalidValue("enable_words is true or false.", param="parameters.enable_words")
    if enabled:
        demand_word_times(services, model, "parameters.enable_words")
    # Answers in this form always have words, as far as somebody can place them.
    words = services.info_of(model).word_times if enabled is None and form == MANY_FILES else bool(enabled)
    language = _language(fields)
    demand_known(language, services.info_of(model).languages, "parameters.language")
    return JobWish(
        model,
        language,
        context_of(fields, path="parameters."),
        words=words,
        channels=_channels(fields.get("channel_id")),
        details=_special_words(fields.get("special_word_filter")),
    )


def _language(fields: Mapping[str, Any]) -> str | None:
    """Return the language that all files are in; several hints leave it to the model."""
    hints = fields.get("language_hints") or []
    if not isinstance(hints, list):
        raise InvalidValue("language_hints is a list.", param="parameters.language_hints")
    named = [_checked(hint, "parameters.language_hints") for hint in hints]
    language = _text(fields, "language", "parameters.language") or (named[0] if len(named) == 1 else "")
    return language_named(language)


def _channels(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    channels = value if isinstance(value, list) else [value]
    if not all(type(channel) is int and 0 <= channel <= _MAX_CHANNEL for channel in channels):
        raise InvalidValue("channel_id is a list of numbers of channels, from 0.", param="parameters.channel_id")
    return tuple(sorted(set(channels)))


def _special_words(value: object) -> dict[str, list[str]]:
    """Return the words to hide and to leave out, where there are any, as a job keeps them."""
    words = special_words_of(value, "parameters.special_word_filter")
    return {name: list(found) for name, found in asdict(words).items() if found}


def _known_model(services: Services, asked: str) -> str:
    try:
        return model_named(services, asked)
    except UnknownModel:
        if _VENDOR_MODELS.fullmatch(asked):
            return services.models.default
        raise


def _object(fields: Mapping[str, Any], name: str, param: str) -> Mapping[str, Any]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidValue(f"{name} is not an object.", param=param)
    return value


def _text(fields: Mapping[str, Any], name: str, param: str) -> str:
    value = fields.get(name)
    return "" if value is None else _checked(value, param)


def _checked(value: object, param: str) -> str:
    """Return a text that can be stored: JSON can also say halves of characters."""
    if not isinstance(value, str):
        raise InvalidValue(f"{param} has a value that is no string.", param=param)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{param} holds what is no text.", param=param) from None
    return value
