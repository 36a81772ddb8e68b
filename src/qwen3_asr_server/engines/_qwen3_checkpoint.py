"""What every engine with Qwen3-ASR weights knows of them: their languages, their limits, and how to see them work.

Reads the `config.json` of a local folder at most; loads no weights and knows no model library. `vllm.py`,
`transformers.py` and `qwen_asr.py` call it.
"""

import json
import wave
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np

from qwen3_asr_server.domain import GRID_SAMPLES, EngineInfo, Samples
from qwen3_asr_server.errors import EngineNotReady, InvalidValue
from qwen3_asr_server.text.languages import find
from qwen3_asr_server.text.prompt import FORCED_NAMES, Encode, clean_context

DEFAULT_LANGUAGE: Final = "zh"
MAX_CONTEXT_TOKENS: Final = 1000
"""Context is in the cache of every step of its session: 200 sessions with 10,000 tokens each would fill it."""
MAX_CONTEXT_CHARS: Final = 10_000
MIN_SAMPLES: Final = 7 * GRID_SAMPLES
"""0.56 s: shorter audio is filled up with silence. The model's own front end does so at 0.5 s, off the grid."""

_CLIP: Final = "_qwen3_clip.wav"


def languages_of(model_path: str) -> frozenset[str]:
    """Return the wire codes that the weights name; all that Qwen3-ASR has where the weights are not at hand."""
    named = config_of(model_path).get("support_languages") or ()
    found = {language.code for language in map(find, named) if language is not None}
    return frozenset(found & FORCED_NAMES.keys()) or frozenset(FORCED_NAMES)


def describe(name: str, runs_on: str, model_path: str, trait: str, *, production: bool = True) -> EngineInfo:
    """Return what an engine says of itself.

    Args:
        name: the value of `ENGINE`.
        runs_on: for people, after "Qwen3-ASR on".
        model_path: hub name or folder of the weights.
        trait: what is special about it, for people.
        production: see `EngineInfo`.
    """
    languages = languages_of(model_path)
    known = "30 languages and Chinese dialects" if len(languages) == len(FORCED_NAMES) else ", ".join(sorted(languages))
    return EngineInfo(
        name=name,
        model=shown_name(model_path),
        description=f"Qwen3-ASR on {runs_on}: {trait}, in {known}.",
        languages=languages,
        default_language=DEFAULT_LANGUAGE if DEFAULT_LANGUAGE in languages else min(languages),
        production=production,
        context=True,
    )


def shown_name(model_path: str) -> str:
    """Return a hub name as it is, and the last part of a folder."""
    return Path(model_path).resolve().name if Path(model_path).is_dir() else model_path


def config_of(model_path: str) -> dict[str, Any]:
    """Return the configuration in a local folder; empty where there is none to be read."""
    try:
        config = json.loads((Path(model_path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def context_encoder(encode: Encode) -> Callable[[str], tuple[int, ...]]:
    """Return a function that makes token ids of a client's context, without its control tokens."""

    @lru_cache(maxsize=1024)
    def context_ids(context: str) -> tuple[int, ...]:
        cleaned = clean_context(context, MAX_CONTEXT_CHARS)
        return tuple(encode(cleaned)[:MAX_CONTEXT_TOKENS]) if cleaned else ()

    return context_ids


def known_clip() -> Samples:
    """Return speech that every Qwen3-ASR model understands, on the 80 ms grid."""
    with resources.files(__package__).joinpath(_CLIP).open("rb") as file, wave.open(file) as source:
        samples = np.frombuffer(source.readframes(source.getnframes()), "<i2").astype(np.float32) / np.float32(32768)
    return samples[: len(samples) // GRID_SAMPLES * GRID_SAMPLES]


def require_language(code: str | None, languages: frozenset[str]) -> None:
    """Check a language that a session wants to force; None is always right.

    Raises:
        InvalidValue: the weights cannot be told to expect it.
    """
    if code is not None and code not in languages:
        raise InvalidValue(f"the model cannot be set to the language '{code}'", param="language")


def require_text(text: str) -> None:
    """Look at what the known clip has become.

    Raises:
        EngineNotReady: it is nothing, or what a model writes whose numbers overflow.
    """
    if not set(text) - set("! "):
        raise EngineNotReady(
            "the model does not transcribe a known clip; if MODEL_DTYPE is 'half', these weights need 'auto'"
        )
