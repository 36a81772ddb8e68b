"""An answer that takes long to work out: given up when the client leaves, told as it comes if the client likes.

    receive ──▶ body ──▶ work ──▶ a response, or server-sent events and then the end
                          ▲
    the client leaves ────┘ cancelled, so that everything it holds is given back

Work that fails is answered in the door's own form: as a response, or as the last event where events have begun. Knows
no audio and no door. Used by the doors for recordings.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from qwen3_asr_server.errors import AsrServerError, InternalError, ShuttingDown

_log = logging.getLogger(__name__)

_BODY_CHUNKS: Final = 4
"""Pieces of the body that wait to be stored; uvicorn's have 64 KiB."""
_REST_S: Final = 1.0
"""How long the rest of a refused body is taken in: a client that still sends may not read its answer."""
EVENT_STREAM: Final = "text/event-stream"
_EVENT_HEADERS: Final = (
    (b"content-type", f"{EVENT_STREAM}; charset=utf-8".encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)


class Sending:
    """The way to a client, which knows whether an answer has begun on it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        """Send a message."""
        self.begun = True
        await self._send(message)


class Exchange:
    """One request and the way back.

    Args:
        headers: of the request.
        group: owns what runs beside the work.
        sending: to the client.
        send_timeout_s: longest wait for a client to take an event, in seconds.
    """

    def __init__(self, headers: Headers, group: asyncio.TaskGroup, sending: Sending, send_timeout_s: float) -> None:
        self.headers = headers
        self._group = group
        self._send = sending
        self._send_timeout_s = send_timeout_s
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_BODY_CHUNKS)
        self._body_over = False
        self._helpers: list[asyncio.Task[None]] = []

    @property
    def begun(self) -> bool:
        """Whether an event was sent: it is too late for a status."""
        return self._send.begun

    @property
    def announced_bytes(self) -> int:
        """Length of the body by its own account; 0 where it gives none."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isdecimal() else 0

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes; once."""
        while not self._body_over:
            chunk = await self._chunks.get()
            if chunk is None:
                self._body_over = True
            elif chunk:
                yield chunk

    async def skip_rest(self) -> None:
        """Take in what is left of the body, if that does not take long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_REST_S):
                async for _ in self.body():
                    pass

    async def read(self, receive: Receive, gone: Callable[[], object]) -> None:
        """Take in the body, and call `gone` when the client leaves."""
        while (message := await receive())["type"] != "http.disconnect":
            await self._chunks.put(message.get("body", b""))
            if not message.get("more_body", False):
                await self._chunks.put(None)
        gone()

    def beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something until it is cancelled or the answer is complete."""
        task = self._group.create_task(work)
        self._helpers.append(task)
        return task

    def stop_helpers(self) -> None:
        """Cancel what runs beside the work."""
        for task in self._helpers:
            task.cancel()
        self._helpers.clear()  # a cancelled task remembers where, which is here: only the collector would free both

    async def tell(self, data: object, name: str | None = None) -> None:
        """Send an event.

        Args:
            data: becomes JSON.
            name: what kind of event it is, where the door gives them names.

        Raises:
            ClientDisconnect: the client does not take it in time.
        """
        await self.write(event_of(data, name))

    async def tell_long(self, make: Callable[[], object], name: str | None = None) -> None:
        """Send an event that takes long to write down, made on a thread: live sessions would stand still meanwhile.

        Args:
            make: returns what becomes JSON.
            name: as for `tell`.

        Raises:
            ClientDisconnect: the client does not take it in time.
        """
        await self.write(await asyncio.to_thread(lambda: event_of(make(), name)))

    async def write(self, event: str) -> None:
        """Send an event as it is to stand on the wire, with the blank line at its end.

        Raises:
            ClientDisconnect: the client does not take it in time.
        """
        try:
            async with asyncio.timeout(self._send_timeout_s):
                if not self.begun:
                    await self._send({"type": "http.response.start", "status": 200, "headers": list(_EVENT_HEADERS)})
                await self._send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        except TimeoutError:
            raise ClientDisconnect from None

    async def end(self) -> None:
        """End the events."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def event_of(data: object, name: str | None = None) -> str:
    """Return an event as it stands on the wire."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"


Work = Callable[[Exchange], Awaitable[Response | None]]
"""Returns the answer, or None when it has told events."""


class Answer(Response):
    """A response that is worked out while the client waits for it.

    Args:
        work: what is to be done.
        failure: how the door says what went wrong. Where events have begun, its body is the last event: written
            already if the response is of that type, else JSON.
        failure_name: the name of that event, if it is JSON.
        send_timeout_s: longest wait for a client to take an event, in seconds.
    """

    def __init__(
        self,
        work: Work,
        failure: Callable[[AsrServerError], Response],
        *,
        failure_name: str | None = None,
        send_timeout_s: float,
    ) -> None:
        super().__init__()
        self._work = work
        self._failure = failure
        self._failure_name = failure_name
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do the work and answer, unless the client leaves before, or the server waits no longer for its end."""
        sending = Sending(send)
        try:
            await self._work_and_answer(scope, receive, sending)
        except asyncio.CancelledError:
            if sending.begun:
                raise
            # The cancellation ends here: whoever sent it wants the request over, and that it is.
            await self._failure(ShuttingDown("The server is shutting down."))(scope, receive, send)

    async def _work_and_answer(self, scope: Scope, receive: Receive, send: Sending) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                exchange = Exchange(Headers(scope=scope), group, send, self._send_timeout_s)
                working = group.create_task(self._answer(exchange, scope, receive, send))
                exchange.beside(exchange.read(receive, working.cancel))
                working.add_done_callback(lambda _: exchange.stop_helpers())
        except* ClientDisconnect:  # from the work, or from what tells its progress beside it
            _log.info("a client took no events any more")

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._worked_out(exchange)
        if response is None:
            await exchange.end()
        else:
            await response(scope, receive, send)

    async def _worked_out(self, exchange: Exchange) -> Response | None:
        try:
            return await self._work(exchange)
        except AsrServerError as error:
            # The error is not kept: with its trace it holds all that the work held, such as a long data URL.
            response = self._failure(error)
        except ClientDisconnect:
            raise
        except Exception:  # noqa: BLE001 - the boundary of a request
            _log.exception("a request failed")
            response = self._failure(InternalError("The server failed; its log has the details."))
        if not exchange.begun:
            await exchange.skip_rest()
            return response
        exchange.stop_helpers()  # nobody may tell progress after this
        if response.media_type == EVENT_STREAM:
            await exchange.write(bytes(response.body).decode())
        else:
            await exchange.tell(json.loads(bytes(response.body)), self._failure_name)
        return None
