"""Logging: one handler, one line a record, with the fields of the session it belongs to.

`session_context` binds fields (session_id, utterance, protocol, key_id) for the code under it, tasks
included; the formatters merge them into every record. What must stay out of a log (transcripts, keys,
URLs with queries) is kept out by whoever logs; uvicorn, whose informational lines carry whole URLs, is
lowered to warnings here. Knows nothing of the server besides that; called by `cli`, used by all layers
that may log.
"""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, Literal

_NO_FIELDS: Final[Mapping[str, object]] = MappingProxyType({})
_fields: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default=_NO_FIELDS)

_STANDARD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_REFUSED_UPGRADE: Final = "ASGI callable returned without completing handshake."
"""What uvicorn logs as an error whenever a WebSocket is refused by an HTTP answer, as the way is here."""
_THIRD_PARTIES: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "websockets", "asyncio", "httpx")


@contextmanager
def session_context(**fields: object) -> Iterator[None]:
    """Add fields to every record logged inside the `with` block, and by tasks started in it."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def configure(level: str, style: Literal["json", "console"]) -> None:
    """Send every record of the process to standard error in one form.

    Args:
        level: `debug`, `info`, `warning` or `error`, for our own loggers; libraries log warnings and worse.
        style: `json` for one object a line, `console` for people.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _THIRD_PARTIES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
        logger.addFilter(_is_news)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the record's and the session's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """A line for people: local time, level, message, then fields as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of text, followed by its exception if it has one."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={value}" for name, value in _fields_of(record).items())
        # Some fields are a client's own words: no second line, no colours.
        said = _CONTROL.sub(lambda found: repr(found[0])[1:-1], f"{record.getMessage()}{fields}")
        line = f"{time} {record.levelname:<7} {said}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != _REFUSED_UPGRADE


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    own = {name: value for name, value in vars(record).items() if name not in _STANDARD_ATTRIBUTES}
    return {**_fields.get(), **own}
