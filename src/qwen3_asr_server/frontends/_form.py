"""The body of a request for a transcript: a form with a file, or the same fields without one.

A file in `multipart/form-data` is stored while it comes, and only once: the framework's own parser would store it
before a limit could be kept. Fields may stand before or behind it. JSON and URL-encoded forms have no file; they name
one in `url`, or hold it there, and then it is stored too and the rest of the body forgotten. Fields are strings
whatever they came in. Knows no audio; used by the doors for recordings.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header

from qwen3_asr_server.errors import InvalidValue, TooLarge
from qwen3_asr_server.frontends._answer import Exchange
from qwen3_asr_server.frontends._bodies import Bodies, json_object
from qwen3_asr_server.frontends._multipart import FILE, MAX_FIELDS_BYTES, MAX_PARTS, Multipart
from qwen3_asr_server.runtime.sources import DataUrl, SourceLimits, Upload, fetched, source_of
from qwen3_asr_server.text.hotwords import BEFOREHAND

URL: Final = "url"
_MULTIPART: Final = b"multipart/form-data"
_PARSERS: Final[Mapping[bytes, Callable[[bytes | bytearray], dict[str, list[str]]]]] = {
    b"application/json": lambda body: _from_object(json_object(body)),
    b"application/x-www-form-urlencoded": lambda body: _from_pairs(bytes(body)),
}
_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off", ""})


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a form; a name may stand more than once."""

    values: Mapping[str, list[str]] = field(default_factory=dict)

    def all(self, name: str) -> list[str]:
        """Return every value of a field."""
        return self.values.get(name, [])

    def text(self, name: str) -> str:
        """Return the last value of a field, without outer white space; empty where there is none."""
        return (self.all(name) or [""])[-1].strip()

    def flag(self, name: str) -> bool:
        """Return a yes or no; no where there is none.

        Raises:
            InvalidValue: it is neither.
        """
        value = self.text(name).lower()
        if value not in _TRUE | _FALSE:
            raise InvalidValue(f"{name} is true or false.", param=name)
        return value in _TRUE

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Return one of several values, the first where there is none.

        Raises:
            InvalidValue: it is none of them.
        """
        value = self.text(name).lower() or choices[0]
        if value not in choices:
            raise InvalidValue(f"{name} is one of: {', '.join(filter(None, choices))}.", param=name)
        return value


@dataclass(frozen=True, slots=True)
class Form:
    """What a client sent."""

    fields: Fields
    path: Path | None
    """Where its file is, if it sent one, be it in a data URL."""


@asynccontextmanager
async def received(exchange: Exchange, limits: SourceLimits, bodies: Bodies | None) -> AsyncIterator[Form]:
    """Yield the form in a request; its file is there while the block lasts.

    Args:
        exchange: the request.
        limits: what a file may cost.
        bodies: reads those that are no form with a file; None: there has to be a file.

    Raises:
        InvalidValue: it is no form.
        TooLarge: it is over a limit.
        IdleTimeout: it stops before its end.
        Overloaded: there is no room to store it.
    """
    kind, _ = parse_options_header(exchange.headers.get("content-type"))
    if kind != _MULTIPART:
        async with AsyncExitStack() as files:
            yield await _without_file(exchange, kind, limits, bodies, files)
        return
    form = multipart(exchange, limits.max_bytes)
    async with fetched(Upload(form.file_in(exchange.body())), limits) as path:
        yield Form(Fields(form.fields), path if form.has_file else None)


def multipart(exchange: Exchange, max_bytes: int) -> Multipart:
    """Return the form with a file in a request, of which nothing is read yet.

    Args:
        exchange: the request.
        max_bytes: largest file.

    Raises:
        TooLarge: it announces a larger one.
        InvalidValue: it is no form.
    """
    if exchange.announced_bytes > max_bytes + MAX_FIELDS_BYTES:
        raise TooLarge(f"The file is larger than {max_bytes} bytes.", param=FILE)
    _, parameters = parse_options_header(exchange.headers.get("content-type"))
    return Multipart(parameters.get(b"boundary", b""))


@asynccontextmanager
async def audio_in(form: Form, limits: SourceLimits) -> AsyncIterator[Path]:
    """Yield the recording that a form holds or names.

    Raises:
        InvalidValue: it does neither, or both.
        ClientError: it cannot be had, see `fetched`.
    """
    url = form.fields.text(URL)
    if form.path is not None and url:
        raise InvalidValue("There is a file and a url: send one of them.", param=URL)
    if form.path is not None:
        yield form.path
        return
    if not url:
        raise InvalidValue("There is no file.", param=FILE)
    async with fetched(source_of(url), limits) as path:
        yield path


async def _without_file(
    exchange: Exchange, kind: bytes, limits: SourceLimits, bodies: Bodies | None, files: AsyncExitStack
) -> Form:
    if bodies is None:
        raise InvalidValue("There is no file.", param=FILE)
    if kind not in _PARSERS:
        raise InvalidValue("Send multipart/form-data with a file, or JSON.")
    async with bodies.read(exchange, _PARSERS[kind]) as values:
        fields, path = await _unpacked(Fields(values), limits, files)
    return Form(fields, path)


async def _unpacked(fields: Fields, limits: SourceLimits, files: AsyncExitStack) -> tuple[Fields, Path | None]:
    """Return fields without the data URL among them, and where the file is that it holds.

    Raises:
        TooLarge: what is left is longer than the fields of a form with a file may be.
        AsrServerError: the data URL cannot be read.
    """
    others, path = dict(fields.values), None
    url = fields.text(URL)
    if url[:5].lower() == "data:":
        del others[URL]
        path = await files.enter_async_context(fetched(DataUrl(url), limits))
    if sum(len(text) for name, values in others.items() for text in (name, *values)) > MAX_FIELDS_BYTES:
        raise TooLarge(f"The fields beside a data URL have at most {MAX_FIELDS_BYTES} characters together.")
    return Fields(others), path


def _from_object(values: dict[str, Any]) -> dict[str, list[str]]:
    if len(values) > MAX_PARTS:
        raise InvalidValue(f"The body has at most {MAX_PARTS} fields.")
    return {name: _strings(name, value) for name, value in values.items() if value is not None}


def _strings(name: str, value: object) -> list[str]:
    match value:
        case list() | dict() if name in BEFOREHAND:
            return [_as_json(name, value)]
        case list() if len(value) > MAX_PARTS:
            raise InvalidValue(f"{name} has at most {MAX_PARTS} values.", param=name)
        case list():
            return [_string(name, each) for each in value]
        case _:
            return [_string(name, value)]


def _string(name: str, value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str() | int() | float():
            return str(value)
        case _:
            raise InvalidValue("A field has a value of the wrong type.", param=name)


def _as_json(name: str, value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        raise InvalidValue(f"{name} is nested too deeply.", param=name) from None
    if len(text) > MAX_FIELDS_BYTES:
        raise TooLarge(f"{name} has at most {MAX_FIELDS_BYTES} bytes.", param=name)
    return text


def _from_pairs(body: bytes) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    try:
        for name, value in parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_PARTS):
            fields.setdefault(name, []).append(value)
    except ValueError:
        raise InvalidValue("The body is not a valid form.") from None
    return fields
