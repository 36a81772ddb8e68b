"""The voice activity detectors: every module here without a leading underscore is one, and its name selects it.

A module exposes `VAD`, a callable without arguments that loads the detector. Only the module asked for is
imported. Knows nothing about any detector but its name; `runtime` calls it when the server starts.
"""

import pkgutil
from importlib import import_module

from qwen3_asr_server.errors import EngineNotReady
from qwen3_asr_server.vad._base import VadModel


def vad_names() -> list[str]:
    """List the detectors, sorted. Imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_vad(name: str = "silero") -> VadModel:
    """Import one detector and load it.

    Raises:
        EngineNotReady: no such detector, or it cannot be loaded. There is no running without one.
    """
    if name not in vad_names():
        raise EngineNotReady(f"no VAD is named {name!r}; known VADs: {', '.join(vad_names())}")
    try:
        model: VadModel = import_module(f"{__name__}.{name}").VAD()
    except ImportError as problem:
        raise EngineNotReady(f"VAD {name!r} needs {problem.name!r}, which cannot be imported") from problem
    return model
