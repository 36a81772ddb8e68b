"""What clients say beforehand, in their fields for it: hotwords in any of the usual forms, and texts.

    ["Qwen", …]   [{"word": "SQL", "sounds_like": ["sequel"]}, …]   [{"text": "Qwen", "weight": 4, "lang": "zh"}, …]
    {"Qwen": 4, …}   and any of these as JSON within a string, as forms send it

Everything is checked and bounded, and becomes the one context that models take (`text.context`). Knows no door; every
door for recordings calls it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.text.context import WORD_CHARS, Hotword, render_context

CUSTOM_WORDS: Final = "custom_vocabulary_word"
"""The field of hotwords with `sounds_like`."""
VOCABULARY: Final = "vocabulary"
"""The vendor's field of hotwords with weights."""
CORPUS: Final = "corpus"
"""The vendor's field of texts: an object with `text`."""
BEFOREHAND: Final = (CUSTOM_WORDS, VOCABULARY, CORPUS)
"""The fields that `context_of` reads."""

MAX_HOTWORDS: Final = 1000
MAX_SOUNDS: Final = 10
"""Ways to say one word."""
_MAX_WEIGHT: Final = 1e6
"""Far beyond those in use; keeps out what is no number, and what no float can hold."""

_WORD: Final[dict[str, Any]] = {"type": "string", "maxLength": WORD_CHARS}
SCHEMAS: Final[Mapping[str, Any]] = {
    CUSTOM_WORDS: {
        "type": "array",
        "maxItems": MAX_HOTWORDS,
        "items": {
            "type": "object",
            "required": ["word"],
            "properties": {
                "word": _WORD,
                "sounds_like": {"type": "array", "items": _WORD, "maxItems": MAX_SOUNDS},
            },
        },
        "description": "Words that are likely to be said, and how they sound; in a form as JSON.",
    },
    VOCABULARY: {
        "type": "array",
        "maxItems": MAX_HOTWORDS,
        "items": {
            "type": "object",
            "required": ["text"],
            "properties": {"text": _WORD, "weight": {"type": "number"}, "lang": {"type": "string"}},
        },
        "description": "The same with weights; the heaviest find room first. In a form as JSON.",
    },
    CORPUS: {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "description": "Text that is likely to be said; in a form as JSON.",
    },
}
"""The fields of `context_of`, for the OpenAPI of the doors."""


def context_of(options: Mapping[str, object], *texts: str, hotwords: Sequence[Hotword] = (), path: str = "") -> str:
    """Return the context for what a client says beforehand.

    Args:
        options: what holds the fields `BEFOREHAND`, as JSON or as strings with JSON in them; others are not looked at.
        texts: further texts, which come first.
        hotwords: further ones, which come first too.
        path: where the fields stand, for messages: "asr_options.".

    Raises:
        InvalidValue: one of the fields is wrong.
    """
    found = [*hotwords]
    for name in (CUSTOM_WORDS, VOCABULARY):
        found += hotwords_of(options.get(name), path + name)
    return render_context([*texts, _corpus_text(options.get(CORPUS), path + CORPUS)], found)


def hotwords_of(value: object, param: str = CUSTOM_WORDS) -> list[Hotword]:
    """Return the hotwords in a field.

    A word that is to be heard less often, by a negative weight, is left out: a context can only make words likelier.

    Args:
        value: what stands in the field, JSON or a string with JSON in it; None and "" are no hotwords.
        param: the field, as the client named it.

    Raises:
        InvalidValue: it is none of the forms, or over a limit.
    """
    if isinstance(value, str):
        value = _from_text(value, param)
    match value:
        case None:
            return []
        case dict():
            entries: list[Any] = [{"text": word, "weight": weight} for word, weight in value.items()]
        case list():
            entries = value
        case _:
            raise InvalidValue(f"{param} is a list of words.", param=param)
    if len(entries) > MAX_HOTWORDS:
        raise InvalidValue(f"{param} has at most {MAX_HOTWORDS} words.", param=param)
    found = [_hotword(entry, f"{param}[{number}]") for number, entry in enumerate(entries)]
    return [hotword for hotword in found if hotword.weight >= 0]


def _corpus_text(value: object, param: str) -> str:
    if isinstance(value, str):
        value = _from_text(value, param)
    if value is None:
        return ""
    text = value.get("text") if isinstance(value, dict) else value
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InvalidValue(f"{param}.text is a string.", param=f"{param}.text")
    return text


def _from_text(text: str, param: str) -> object:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        raise InvalidValue(f"{param} is not valid JSON.", param=param) from None


def _hotword(entry: object, param: str) -> Hotword:
    """Return one hotword."""
    if isinstance(entry, str):
        return Hotword(_short(entry, param))
    if not isinstance(entry, dict):
        raise InvalidValue(f"{param} is neither a word nor an object with one.", param=param)
    name = "text" if "text" in entry and "word" not in entry else "word"
    weight = entry.get("weight")
    if weight is None:
        weight = 0.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= _MAX_WEIGHT:
        raise InvalidValue(f"{param}.weight is a number.", param=f"{param}.weight")
    return Hotword(_short(entry.get(name), f"{param}.{name}"), _sounds(entry.get("sounds_like"), param), float(weight))


def _sounds(value: object, param: str) -> tuple[str, ...]:
    param = f"{param}.sounds_like"
    if value is None:
        return ()
    sounds = [value] if isinstance(value, str) else value
    if not isinstance(sounds, list) or len(sounds) > MAX_SOUNDS:
        raise InvalidValue(f"{param} is a list of at most {MAX_SOUNDS} strings.", param=param)
    return tuple(_short(sound, param) for sound in sounds)


def _short(text: object, param: str) -> str:
    if not isinstance(text, str) or len(text) > WORD_CHARS:
        raise InvalidValue(f"{param} is a string of at most {WORD_CHARS} characters.", param=param)
    return text
