"""Who uses which model: any number of leases, all on the same one.

Knows nothing of engines. The pool unloads nothing that is leased; the services lease a model for each session.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from qwen3_asr_server.errors import ShuttingDown
from qwen3_asr_server.runtime.admission import Refused
from qwen3_asr_server.runtime.alarm import Clock
from qwen3_asr_server.runtime.changes import Changes

_MOST_WAITING: Final = 64
"""Clients that may wait for another model at once."""


class Leases:
    """Count the leases of the one model that has any.

    Args:
        changes: told when a lease ends.
        wait_s: longest wait for the leases of another model to end.
        clock: seconds, monotonic.

    Attributes:
        count: how many there are.
        idle_since: when the last one ended; the pool also sets it, when an engine has just started.
    """

    def __init__(self, changes: Changes, wait_s: float, clock: Clock) -> None:
        self._changes = changes
        self._wait_s = wait_s
        self._clock = clock
        self._model: str | None = None
        self._waiting = 0
        self._closed = False
        self.count = 0
        self.idle_since = clock()

    def possible(self, model: str) -> bool:
        """Tell whether nobody has leased another model."""
        return not self.count or self._model == model

    async def room_for(self, model: str) -> None:
        """Wait until nobody has leased another model.

        Newcomers for that other model are let in meanwhile: who asks for a model must not be able to block one.

        Raises:
            Refused: that took too long, or too many wait already.
            ShuttingDown: after `close`.
        """
        if self.possible(model):
            return
        if self._waiting >= _MOST_WAITING:
            raise _refused()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._changes.until(lambda: self.possible(model) or self._closed)
        except TimeoutError:
            raise _refused() from None
        finally:
            self._waiting -= 1
        if self._closed:
            raise ShuttingDown("The server is shutting down.")

    @contextmanager
    def hold(self, model: str) -> Iterator[None]:
        """Lease a model for the length of the `with` block.

        Raises:
            Refused: another model is leased.
        """
        if not self.possible(model):
            raise _refused()
        self._model = model
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
            self.idle_since = self._clock()
            self._changes.tell()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        self._changes.tell()


def _refused() -> Refused:
    return Refused("Another model is in use; try again later.", reason="model_in_use")
