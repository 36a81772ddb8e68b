"""How a text is cut into units in each language; Japanese and Korean by packages that are installed apart.

The two write words without marking where one ends in the way the aligner was trained on. Imports `nagisa` or `soynlp`
when such a text comes first; `_aligner` is the only caller.
"""

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from qwen3_asr_server.errors import EngineError
from qwen3_asr_server.text.alignment import SpokenUnit, spoken_units, units_of_words


def units_of(text: str, language: str | None) -> list[SpokenUnit]:
    """Return the units of a text.

    Args:
        text: a transcript.
        language: its wire code, None if unknown.

    Raises:
        EngineError: the package for this language is not installed.
    """
    match language:
        case "ja":
            return units_of_words(_japanese_words(text))
        case "ko":
            return units_of_words(_korean_words(text))
        case _:
            return spoken_units(text)


def _japanese_words(text: str) -> Sequence[str]:
    words: Sequence[str] = _package("nagisa", "Japanese", "words-ja").tagging(text).words
    return words


def _korean_words(text: str) -> Sequence[str]:
    words: Sequence[str] = _korean_tokenizer().tokenize(text)
    return words


@cache
def _korean_tokenizer() -> Any:
    return _package("soynlp.tokenizer", "Korean", "words-ko").LTokenizer()


def _package(name: str, language: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        package = name.partition(".")[0]
        raise EngineError(
            f"{language} word times need the package {package!r}: install the extra {extra!r}"
        ) from problem
