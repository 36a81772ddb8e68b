"""Qwen3-ASR through the official package: one piece at a time, behind one lock, for comparison and for one user.

The package pins an old transformers, so it has an environment of its own. `_qwen3_engine` does the rest: the lock is
a queue whose one thread takes one step at a time. Made by `load_engine("qwen_asr", options)`.
"""

import importlib.util
import logging
from dataclasses import replace

from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._qwen3_checkpoint import describe
from qwen3_asr_server.engines._qwen3_engine import Model, WholeEngine, require_packages
from qwen3_asr_server.errors import EngineNotReady

_log = logging.getLogger(__name__)


class QwenAsrEngine(WholeEngine):
    """qwen-asr behind the engine interface.

    Args:
        options: `model_path`, `dtype`, `max_new_tokens` and the timeouts are read.
    """

    def __init__(self, options: EngineOptions) -> None:
        trait = "one utterance at a time, for comparison"
        info = describe("qwen_asr", "the official package qwen-asr", options.model_path, trait, production=False)
        super().__init__(replace(info, max_streams=1), options, _load, max_batch=1)


def auto_reason(options: EngineOptions) -> str | None:
    """Say that it can run where the package is installed; `ENGINE=auto` itself never takes it."""
    return "qwen-asr is installed" if importlib.util.find_spec("qwen_asr") is not None else None


def _load(options: EngineOptions) -> Model:
    """Import the package and load the weights; both block."""
    require_packages("qwen_asr", "torch", extra="qwen-asr")
    from qwen3_asr_server.engines._qwen_asr_model import QwenAsrModel

    try:
        return QwenAsrModel.load(options.model_path, options.dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        _log.exception("the weights could not be loaded")
        raise EngineNotReady("the weights could not be loaded; the log says why") from problem


ENGINE = QwenAsrEngine
