"""uvicorn, taught to let sessions finish.

uvicorn closes every WebSocket with 1012 as soon as it is told to stop, before the application hears of it. So
the drain happens between the signal and uvicorn's own shutdown: the port still answers (not ready), live
sessions get their finals, then uvicorn stops. Knows no settings; made by `_app`, run by `cli` and by tests.
"""

import asyncio
import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Generator
from typing import Final

import uvicorn

from qwen3_asr_server.frontends._state import AppState

_POLL_S: Final = 0.1
_SWITCH_INTERVAL_S: Final = 0.001
_GARBAGE_THRESHOLDS: Final = (50_000, 50, 100)
_GOODBYE_S: Final = 2.0


def tune_process() -> None:
    """Fit the interpreter to many small messages; once, by a process that does nothing but serve.

    The loop and the VAD thread change places hundreds of times a second, so neither should hold the other up
    for the default 5 ms; and what was imported need not be searched for garbage at every turn.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


class Server(uvicorn.Server):
    """A server that drains before it shuts down, and stops when the application cannot work.

    Args:
        config: for uvicorn.
        state: of the application that is served.
    """

    def __init__(self, config: uvicorn.Config, state: AppState) -> None:
        super().__init__(config)
        self.state = state

    async def on_tick(self, counter: int) -> bool:
        """Say whether to leave the main loop; uvicorn asks ten times a second."""
        return await super().on_tick(counter) or self.state.failure is not None

    async def main_loop(self) -> None:
        """Serve until asked to stop, then let the sessions finish."""
        await super().main_loop()
        if self.state.failure is None:
            await self._drain_unless_forced()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop on SIGINT and SIGTERM, at once on the second SIGINT.

        uvicorn's own version raises the signal again at the end, so that a clean stop would look like a kill.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def _drain_unless_forced(self) -> None:
        async with asyncio.TaskGroup() as group:
            draining = group.create_task(self._drain())
            while not draining.done():
                if self.force_exit:
                    draining.cancel()
                await asyncio.wait({draining}, timeout=_POLL_S)

    async def _drain(self) -> None:
        services = self.state.services
        await self.state.jobs.suspend()
        await services.drain()
        # Sessions that were cut off still have to be told why.
        for _ in range(round(_GOODBYE_S / _POLL_S)):
            if not services.admission.in_use:
                break
            await asyncio.sleep(_POLL_S)
