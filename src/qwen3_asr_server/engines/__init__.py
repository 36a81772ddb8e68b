"""The recognisers: every module here without a leading underscore is one, and its name selects it.

An engine module exposes `ENGINE`, a class (or any callable) that takes `EngineOptions`. It may also expose
`auto_reason(options) -> str | None`: why `ENGINE=auto` should take it on this machine, or None if it should not.
Other packages join through the entry-point group `qwen3_asr_server.engines`. Only the module asked for is
imported. Knows nothing about any engine but its name; `runtime` and `doctor` call it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, Final

from qwen3_asr_server.errors import EngineNotReady

if TYPE_CHECKING:
    # The children of the embedded engine import this package too: numpy would cost each of them 30 MB.
    from qwen3_asr_server.engines._base import Aligner, AlignerOptions, Engine, EngineOptions

ENTRY_POINTS: Final = "qwen3_asr_server.engines"
AUTO_ORDER: Final = ("vllm", "transformers", "pocketsphinx")
"""What `auto` asks, best first. Names without a module are passed over."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine runs, and why; the log and `doctor` say it."""

    name: str
    reason: str


def engine_names() -> list[str]:
    """List what `ENGINE` may be set to besides `auto`, sorted. Imports none of them."""
    return sorted({*_own_names(), *(point.name for point in metadata.entry_points(group=ENTRY_POINTS))})


def load_engine(name: str, options: EngineOptions) -> Engine:
    """Import one engine and build it; it is not started yet.

    Raises:
        EngineNotReady: no such engine, or something that it needs is not installed.
    """
    factory: Callable[[EngineOptions], Engine] = _attribute(name, "ENGINE")
    return factory(options)


def load_aligner(options: AlignerOptions) -> Aligner:
    """Import the forced aligner and build it; it is not started yet."""
    aligner: Aligner = import_module(f"{__name__}._aligner").ALIGNER(options)
    return aligner


def choose_engine(name: str, options: EngineOptions) -> Choice:
    """Resolve the setting `ENGINE`.

    Args:
        name: an engine's name, or `auto` for the best that can run here. A named engine is never replaced.
        options: what `auto` may look at, such as whether the weights are on disk.

    Raises:
        EngineNotReady: no such engine.
    """
    if name != "auto":
        _require_known(name)
        return Choice(name, "named by ENGINE")
    for candidate in AUTO_ORDER:
        if candidate in _own_names():
            reason = _attribute(candidate, "auto_reason")(options)
            if reason is not None:
                return Choice(candidate, reason)
    raise EngineNotReady(f"no engine can run here; known engines: {', '.join(engine_names())}")


def _own_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def _require_known(name: str) -> None:
    known = engine_names()
    if name not in known:
        raise EngineNotReady(f"no engine is named {name!r}; known engines: auto, {', '.join(known)}")


def _attribute(name: str, attribute: str) -> Any:
    _require_known(name)
    try:
        if name in _own_names():
            return getattr(import_module(f"{__name__}.{name}"), attribute)
        (point,) = metadata.entry_points(group=ENTRY_POINTS, name=name)
        return getattr(import_module(point.module), attribute)
    except ImportError as problem:
        raise EngineNotReady(f"engine {name!r} needs {problem.name!r}, which is not installed") from problem
