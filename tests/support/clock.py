"""Time that jumps: an event loop on which waiting costs nothing.

When nothing is ready to run, the loop's clock moves to the next timer instead of sleeping. Work in threads
still takes real time; while some is out, the clock stands still. Pass `loop.time` (`clock()`) wherever a clock
is injected.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """A selector event loop whose time jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.threads_out = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self.threads_out += 1
        future.add_done_callback(self._thread_is_back)
        return future

    async def shutdown_default_executor(self) -> None:
        self.threads_out += 1  # it is joined in a thread of its own
        await super().shutdown_default_executor()

    def _thread_is_back(self, _: object) -> None:
        self.threads_out -= 1


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._loop.threads_out:
            return super().select(None if timeout is None or timeout > 0 else 0)
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        assert timeout is not None, "everybody waits for something that will never happen"
        self._loop.now += timeout
        return []


def virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on a loop whose time jumps."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def clock() -> float:
    """Return the running loop's time."""
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)
