"""Waiting for a condition over state that several tasks change.

Whoever changes the state tells; whoever waits looks again. All on one event loop, so there is no lock. Used by the
pool, its leases and `in_flight`.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Changes:
    """Wake all who wait for a condition, each time something may have changed."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Let everybody look again."""
        self._next.set()
        self._next = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; when this returns it still does."""
        while not condition():
            await self._next.wait()

    async def until_or(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until a condition holds, or time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self.until(condition)
