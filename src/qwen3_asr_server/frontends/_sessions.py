"""The sessions of one connection, one after the other: a place and a model for each, given back when it is over.

Knows no protocol and no socket. Called by the WebSocket loop, whose task group runs them.
"""

import asyncio
import contextlib
from collections.abc import Callable

from qwen3_asr_server.logs import session_context
from qwen3_asr_server.messages import Event
from qwen3_asr_server.protocols._base import SessionRequest
from qwen3_asr_server.runtime.live import LiveSession
from qwen3_asr_server.runtime.services import Services


class Sessions:
    """Open and end them. Leave the `with` block when the client has been told goodbye.

    Args:
        services: where they come from.
        key_id: which key opened the door, for the limit a key.
        emit: takes their events; called on the event loop, must not block.
        on_over: called when one is over; tells whether another may follow.

    Attributes:
        live: the one that is open; None before, between and after them.
        opened: how many there were.
    """

    def __init__(
        self, services: Services, key_id: str | None, emit: Callable[[Event], None], on_over: Callable[[], bool]
    ) -> None:
        self._services = services
        self._key_id = key_id
        self._emit = emit
        self._on_over = on_over
        self._lease = contextlib.ExitStack()
        self._running: asyncio.Task[None] | None = None
        self._closed = False
        self.live: LiveSession | None = None
        self.opened = 0

    def __enter__(self) -> "Sessions":
        """Begin without any."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what is still held."""
        self._lease.close()

    async def over(self) -> None:
        """Wait until the one that was opened last is over."""
        if self._running is not None:
            await self._running

    async def follow(self, request: SessionRequest, tasks: asyncio.TaskGroup) -> None:
        """Open another one as soon as nobody uses another model; nothing happens after `end`.

        Raises:
            Overloaded: it cannot be opened.
        """
        await self._services.room_for(self._services.models.resolve(request.model))
        if not self._closed:
            self.open(request, tasks)

    def open(self, request: SessionRequest, tasks: asyncio.TaskGroup) -> None:
        """Open one now.

        Raises:
            Overloaded: it cannot be opened.
        """
        model = self._services.models.resolve(request.model)
        session = self._services.open_session(request.config, self._emit, key_id=self._key_id, model=model)
        self.live = self._lease.enter_context(session)
        self.opened += 1
        self._running = tasks.create_task(self._run(self.live, request.name))

    async def end(self, reason: str) -> None:
        """End the one that is open, if one is, and wait for that; none follows."""
        self._closed = True
        if self.live is not None:
            self.live.end(reason)
        await self.over()

    async def _run(self, live: LiveSession, name: str) -> None:
        with session_context(**({"task": name} if name else {})):
            await live.run()
        self.live = None
        another = self._on_over()
        if another or self._services.state != "draining":  # which waits for those that still have to say goodbye
            self._lease.close()
