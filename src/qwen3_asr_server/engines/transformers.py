"""Qwen3-ASR on transformers' own class: for machines where vLLM will not install; CUDA, Apple's GPUs, the processor.

Steps of several sessions join one call of the model, and every step decodes its whole piece; `_qwen3_engine` does
both. Says how the model is loaded, and when `ENGINE=auto` should take it. Made by `load_engine("transformers", …)`.
"""

import importlib.util
import logging
from importlib import metadata
from typing import Final

from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._hub import weights_on_disk
from qwen3_asr_server.engines._qwen3_checkpoint import describe
from qwen3_asr_server.engines._qwen3_engine import Model, WholeEngine, require_packages
from qwen3_asr_server.errors import EngineNotReady

_log = logging.getLogger(__name__)

MAX_BATCH: Final = 8
"""Pieces in one call of the model. With more, a final would wait longer for the call before it."""
_OLDEST: Final = (5, 16)
"""The first version of transformers that has the model."""


class TransformersEngine(WholeEngine):
    """transformers behind the engine interface.

    Args:
        options: `model_path`, `dtype`, `max_new_tokens` and the timeouts are read.
    """

    def __init__(self, options: EngineOptions) -> None:
        info = describe("transformers", "transformers", options.model_path, "a few live sessions at once")
        super().__init__(info, options, _load, MAX_BATCH)


def auto_reason(options: EngineOptions) -> str | None:
    """Say why `ENGINE=auto` should take this engine: transformers is installed and the weights are on disk."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return None
    if _version() < _OLDEST or not weights_on_disk(options.model_path):
        return None
    return "transformers is installed and the weights are on disk"


def _load(options: EngineOptions) -> Model:
    """Import transformers and load the weights; both block."""
    require_packages("torch", "transformers", extra="transformers")
    if _version() < _OLDEST:
        raise EngineNotReady(f"transformers {metadata.version('transformers')} is too old: 5.16.1 or later is needed")
    from qwen3_asr_server.engines._transformers_model import TransformersModel

    try:
        return TransformersModel.load(options.model_path, options.dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        _log.exception("the weights could not be loaded")
        raise EngineNotReady("the weights could not be loaded; the log says why") from problem


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version("transformers").split(".")[:2])


ENGINE = TransformersEngine
