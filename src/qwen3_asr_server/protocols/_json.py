"""JSON from peers who cannot be trusted, and JSON for them: what every protocol of text messages needs.

What would hurt the server is refused: bottomless nesting, numbers that JSON does not have or no float can hold. Knows
no fields (`_fields` reads those) and no protocol.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from qwen3_asr_server.errors import InvalidEvent
from qwen3_asr_server.protocols._fields import JsonObject

LARGE_CHARS: Final = 256 * 1024
"""JSON with many small values takes up to thirty times its length in memory: nothing this long is to be decoded
without a closer look."""
MAX_DEPTH: Final = 32
"""Levels of objects and arrays in one message; documented ones need six."""


def json_object(message: str) -> JsonObject:
    """Return the object that a message is; `check_depth` is still to come.

    Raises:
        InvalidEvent: it is none.
    """
    try:
        body = _DECODER.decode(message)
    except RecursionError:
        raise InvalidEvent("The message is nested too deeply.") from None
    except json.JSONDecodeError:
        raise InvalidEvent("The message is not valid JSON.") from None
    except ValueError:  # of `_finite`, and of Python where an integer has thousands of digits
        raise InvalidEvent("A number in the message is out of range.") from None
    if not isinstance(body, dict):
        raise InvalidEvent("The message is not a JSON object.")
    return body


def check_depth(body: JsonObject) -> None:
    """Refuse an object with more than `MAX_DEPTH` levels in it.

    Raises:
        InvalidEvent: it has.
    """
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise InvalidEvent("The message is nested too deeply.")


def encoded(message: Mapping[str, Any]) -> str:
    """Return a message as compact JSON that can be sent as UTF-8."""
    text = _ENCODER.encode(message)
    # Half a surrogate pair, from an echo or an engine, cannot be.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError("no such number", name, 0)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("number out of range")
    return number


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
