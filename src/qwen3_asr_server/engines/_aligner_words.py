"""How a text is cut into units in each language; Japanese and Korean by packages that are installed apart.

The aligner was trained on Japanese and Korean as `nagisa` and `soynlp` cut them, the latter with a dictionary that only
the package `qwen-asr` holds: where that is not installed, Korean is cut at its spaces, and particles stay with their
words. The packages are imported when such a text comes first; `_aligner` is the only caller.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from qwen3_asr_server.errors import EngineError
from qwen3_asr_server.text.alignment import SpokenUnit, spoken_units, units_of_words

_KOREAN_DICTIONARY: Final = Path("inference", "assets", "korean_dict_jieba.dict")
"""In the package `qwen_asr`: a word at the start of each line."""


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
    return _package("soynlp.tokenizer", "Korean", "words-ko").LTokenizer(scores=_korean_scores())


def _korean_scores() -> Mapping[str, float]:
    """Return the words of the dictionary, all alike; none where it is not installed."""
    package = importlib.util.find_spec("qwen_asr")  # not imported: it would bring its engines along
    folders = package.submodule_search_locations if package is not None else None
    for path in (Path(folder, _KOREAN_DICTIONARY) for folder in folders or ()):
        if path.is_file():
            return {line.split()[0]: 1.0 for line in path.read_text("utf-8").splitlines() if line.strip()}
    return {}


def _package(name: str, language: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        package = name.partition(".")[0]
        raise EngineError(
            f"{language} word times need the package {package!r}: install the extra {extra!r}"
        ) from problem
