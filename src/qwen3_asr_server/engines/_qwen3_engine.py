"""An engine around one blocking Qwen3-ASR model: loads it, checks that it transcribes, gives each piece a stream.

Knows no model library; `transformers.py` and `qwen_asr.py` say how to load theirs.
"""

import asyncio
import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from qwen3_asr_server.domain import EngineInfo, StepKind, StreamOptions
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._qwen3_checkpoint import known_clip, require_language, require_text
from qwen3_asr_server.engines._qwen3_queue import Decode, QueueOptions, StepQueue, Written
from qwen3_asr_server.engines._qwen3_whole import WholeCounters, WholeStream, WholeTools
from qwen3_asr_server.errors import EngineNotReady

_log = logging.getLogger(__name__)

ABANDON_S: Final = 600.0
"""Longest wait for a load that nobody wants any more: none of the libraries can be interrupted."""


class Model(Protocol):
    """Loaded weights. Everything blocks and is called in threads, never twice at once."""

    @property
    def device(self) -> str:
        """Where it runs, for the log."""
        ...

    @property
    def dtype(self) -> str:
        """Number format of the weights, for the log."""
        ...

    def read(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, with added tokens. The only method that the event loop calls."""
        ...

    def decode(self, batch: Sequence[Decode]) -> Sequence[Written]:
        """Carry out decodes, and give an answer for each."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class WholeEngine:
    """The engine interface over a model.

    Args:
        info: what it says of itself.
        options: `max_new_tokens` and the timeouts are read here, the rest by `load`.
        load: gives the model; blocks. Raises EngineNotReady with a reason a user can act upon.
        max_batch: pieces in one call of the model.
    """

    def __init__(
        self, info: EngineInfo, options: EngineOptions, load: Callable[[EngineOptions], Model], max_batch: int
    ) -> None:
        self._info = info
        self._options = options
        self._load = load
        self._max_batch = max_batch
        self._model: Model | None = None
        self._queue: StepQueue | None = None
        self._tools: WholeTools | None = None

    @property
    def info(self) -> EngineInfo:
        """What it is and can do."""
        return self._info

    def stats(self) -> dict[str, int]:
        """Return what it has done since it started; empty while it does not run."""
        if self._queue is None or self._tools is None:
            return {}
        return {"batches": self._queue.batches} | self._tools.counters.flat()

    async def start(self) -> None:
        """Load the weights, warm up, and check that a known clip becomes text."""
        if self._queue is not None:
            return
        began, options = time.monotonic(), self._options
        model = self._model = await _loaded(self._load, options)
        limits = QueueOptions(self._max_batch, options.decode_timeout_s, options.queue_timeout_s)
        self._queue = StepQueue(model.decode, limits)
        self._tools = WholeTools(
            self._queue.decode, model.read, self._info.languages, options.max_new_tokens, WholeCounters()
        )
        try:
            heard = await self.open_stream(StreamOptions()).step(known_clip(), StepKind.FINAL)
            require_text(heard.text if heard else "")
        except BaseException:
            await self.stop()
            raise
        took_s = round(time.monotonic() - began, 1)
        _log.info("the model runs", extra={"seconds": took_s, "device": model.device, "dtype": model.dtype})

    async def stop(self) -> None:
        """Give the weights back; open streams fail."""
        queue, self._queue, self._tools = self._queue, None, None
        model, self._model = self._model, None
        if queue is not None:
            await queue.stop()
        if model is not None:
            await asyncio.to_thread(model.close)

    def open_stream(self, options: StreamOptions) -> WholeStream:
        """Begin a piece.

        Args:
            options: control tokens in the context are taken out.

        Raises:
            EngineNotReady: not started, or stopped.
            InvalidValue: a language that the weights cannot be told to expect.
        """
        if self._tools is None:
            raise EngineNotReady("the engine is not running")
        require_language(options.language, self._info.languages)
        return WholeStream(
            self._tools, options.language, options.context, options.expected_language, recorded=options.recorded
        )


async def _loaded(load: Callable[[EngineOptions], Model], options: EngineOptions) -> Model:
    """Load in a thread. After cancellation this ends when the weights are gone again: two models may not fit."""
    unwanted = threading.Event()

    def run() -> Model:
        model = load(options)
        if unwanted.is_set():  # also when nobody waits for that any more
            model.close()
            raise EngineNotReady("the load was given up")
        return model

    loading = asyncio.ensure_future(asyncio.to_thread(run))
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        unwanted.set()
        await asyncio.wait({loading}, timeout=ABANDON_S)
        if not loading.done():
            _log.error("a load that was given up still goes on", extra={"seconds": ABANDON_S})
        elif loading.exception() is None:  # it was through just before
            await asyncio.to_thread(loading.result().close)
        raise


def require_packages(*names: str, extra: str) -> None:
    """Check that packages are installed.

    Raises:
        EngineNotReady: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise EngineNotReady(f"the package {name!r} is not installed: install the extra {extra!r}")
