"""Starting vLLM's engine cores: one at a time, so that everybody knows which processes are his own.

vLLM does not tell which processes it has started, and the recogniser and the aligner may be loaded at once, when one of
them is started again. Whoever loads one holds a `CoreStart`; giving a load up ends the processes of that one only. Does
not import vLLM; `vllm` and `_aligner` call `load_core`, and their cores the rest.
"""

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Final, Protocol, TypeVar

from qwen3_asr_server.errors import EngineNotReady

_ONE_AT_A_TIME: Final = threading.Lock()
_LOOK_S: Final = 0.2
_JOIN_S: Final = 5.0


class Core(Protocol):
    """What is loaded."""

    def stop(self) -> None:
        """End its processes; blocks until they are gone."""
        ...


C = TypeVar("C", bound=Core)


class CoreStart:
    """The start of one engine core, and afterwards its processes."""

    def __init__(self) -> None:
        self._processes: Sequence[BaseProcess] = ()
        self._others: frozenset[BaseProcess] | None = None
        """Those that were there before; None while no process of this start can come."""
        self._unwanted = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one to start a core, for the length of the `with` block. Blocks until it is one's turn.

        Raises:
            EngineNotReady: the load was given up meanwhile.
        """
        while not _ONE_AT_A_TIME.acquire(timeout=_LOOK_S):
            self._look()
        try:
            self._look()
            self._others = frozenset(_engine_cores())
            try:
                yield
            finally:
                self._processes, self._others = self._begun(), None
        finally:
            _ONE_AT_A_TIME.release()

    def give_up(self) -> None:
        """Let a load that goes on in another thread fail soon. To be repeated until it has: a process may just come."""
        self._unwanted = True
        for process in self._begun():
            process.kill()

    def join(self) -> None:
        """Wait for the processes to end, a few seconds at most."""
        for process in self._processes:
            process.join(_JOIN_S)

    def _begun(self) -> Sequence[BaseProcess]:
        others = self._others
        if others is None:
            return self._processes
        return [process for process in _engine_cores() if process not in others]

    def _look(self) -> None:
        if self._unwanted:
            raise EngineNotReady("the load was given up")


async def load_core(load: Callable[[CoreStart], C]) -> C:
    """Load a core in a thread. After cancellation this ends when its processes are gone.

    Args:
        load: blocks, and starts its core in `CoreStart.alone`.
    """
    start = CoreStart()
    loading = asyncio.ensure_future(asyncio.to_thread(load, start))
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        while not loading.done():
            start.give_up()
            await asyncio.wait({loading}, timeout=_LOOK_S)
        if loading.exception() is None:
            await asyncio.to_thread(loading.result().stop)
        raise


def _engine_cores() -> list[BaseProcess]:
    """Return vLLM's processes that are children of this one."""
    return [child for child in multiprocessing.active_children() if child.name.startswith("EngineCore")]
