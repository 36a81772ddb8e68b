"""The bounded queue between a session and its client's socket.

A message put under the key of one that still waits replaces it in place: a slow client sees fewer partials,
each the newest. Everything else is first in, first out and never dropped; a client that lets the queue
run full is given up. Knows neither messages nor sockets; the WebSocket loop fills and empties it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class OutboxOptions:
    """How much patience there is with a slow client."""

    max_messages: int = 256
    """Messages that may wait."""
    send_timeout_s: float = 10.0
    """Longest time for the client to take one message."""


class OutboxOverflow(Exception):
    """The reader is too slow: more messages wait than allowed."""


class OutboxClosed(Exception):
    """Nothing waits and nothing will follow."""


class Outbox(Generic[M]):
    """A bounded queue with one reader, in which some messages supersede others.

    Args:
        max_messages: messages that may wait, at least 1.
    """

    def __init__(self, max_messages: int) -> None:
        self._max_messages = max_messages
        self._waiting: OrderedDict[Hashable, M] = OrderedDict()
        self._changed = asyncio.Event()
        self._overflowed = False
        self._closed = False

    def put(self, message: M, *, replaces: Hashable | None = None) -> None:
        """Queue a message; never blocks.

        Args:
            message: what `get` will return.
            replaces: a waiting message with this key is superseded; the new one takes its place in the
                order. None always queues at the end.
        """
        if self._closed or self._overflowed:
            return
        key = object() if replaces is None else replaces
        if key not in self._waiting and len(self._waiting) >= self._max_messages:
            self._overflowed = True
        else:
            self._waiting[key] = message
        self._changed.set()

    async def get(self) -> M:
        """Return the oldest message, waiting for one; cancelling loses nothing.

        Raises:
            OutboxOverflow: a message found no room. What waited is not delivered.
            OutboxClosed: after `close`, once everything was returned.
        """
        while True:
            if self._overflowed:
                raise OutboxOverflow
            if self._waiting:
                return self._waiting.popitem(last=False)[1]
            if self._closed:
                raise OutboxClosed
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """Take no more messages; those that wait are still returned."""
        self._closed = True
        self._changed.set()

    def __len__(self) -> int:
        return len(self._waiting)
