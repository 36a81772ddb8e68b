"""The one ASGI WebSocket loop, for every wire protocol.

    reader:  receive ─▶ Protocol.parse ─▶ receive ─▶ commands ─▶ live session ─▶ wait for room
    writer:  events ─▶ send_event ─▶ messages ─▶ outbox ─▶ send

Joins one protocol with its live sessions, one after the other, and obeys the driver's contract of
`protocols/_base.py`. It knows when to read, write and close; what messages mean is the protocol's business, what audio
means the session's. Called by `_app` for each connection, behind access control.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from qwen3_asr_server.errors import Overloaded
from qwen3_asr_server.frontends._errors import error_response
from qwen3_asr_server.frontends._ids import new_id
from qwen3_asr_server.frontends._sessions import Sessions
from qwen3_asr_server.logs import session_context
from qwen3_asr_server.messages import Closing, Command, Disconnect, Event, Partial
from qwen3_asr_server.protocols._base import Close, Handshake, Offers, ServerProtocol, SessionRequest
from qwen3_asr_server.runtime.incidents import internal_error
from qwen3_asr_server.runtime.live import LiveSession
from qwen3_asr_server.runtime.outbox import Outbox, OutboxClosed, OutboxOverflow
from qwen3_asr_server.runtime.services import Services

_log = logging.getLogger(__name__)

_PARSE_ON_WORKER_BYTES: Final = 256 * 1024
_TURN_S: Final = 0.002
"""Work of one client's reader after which all others have their turn: messages that wait in uvicorn's queue are
handed out without any suspension."""
_SLOW: Final = Close(1013, "the client reads too slowly")
_FAULT: Final = Close(1011, "internal error")
_UNUSED: Final = Close(1000, "nothing was asked for")
_UNUSED_S: Final = 60.0
"""How long a connection may stay without a session: the vendor's own limit between two tasks."""
_SHUTDOWN_GRACE_S: Final = 1.0


async def serve_websocket(
    websocket: WebSocket, protocol_class: type[ServerProtocol], services: Services, offers: Offers
) -> None:
    """Serve one connection from its acceptance to its close.

    Args:
        websocket: not accepted yet; `scope["state"]["key_id"]` names the key that opened the door, if any.
        protocol_class: what the client speaks.
        services: where sessions come from.
        offers: what the protocol may offer with a model.
    """
    with (
        session_context(session_id=uuid.uuid4().hex[:12], protocol=protocol_class.name),
        contextlib.ExitStack() as place,
    ):
        protocol = protocol_class(Handshake(dict(websocket.query_params)), offers, new_id)
        first = protocol.session_to_open()
        try:
            if first is not None:
                await services.room_for(services.models.resolve(first.model))
            elif protocol.close_expected is None:
                place.enter_context(services.admit_connection())
        except Overloaded as refusal:
            await websocket.send_denial_response(error_response(refusal))
            return
        await websocket.accept()
        await _Connection(websocket, protocol, services).serve(first)


class _Connection:
    """One client's protocol, outbox and socket."""

    def __init__(self, websocket: WebSocket, protocol: ServerProtocol, services: Services) -> None:
        self._websocket = websocket
        self._protocol = protocol
        self._services = services
        self._send_timeout_s = services.outbox_options.send_timeout_s
        self._outbox: Outbox[str | bytes] = Outbox(services.outbox_options.max_messages)
        key_id = websocket.scope.get("state", {}).get("key_id")
        self._sessions = Sessions(services, key_id, self._emit, self._session_over)
        self._tasks = asyncio.TaskGroup()
        self._shown: tuple[int, int] | None = None
        self._unused: asyncio.TimerHandle | None = None
        self._failed = False
        self._gone = asyncio.Event()

    async def serve(self, first: SessionRequest | None) -> None:
        """Talk until either side ends it, then close.

        Args:
            first: the session to begin with; None while the client has not asked for one.
        """
        with self._sessions:
            await self._close(await self._talk(first))

    async def _talk(self, first: SessionRequest | None) -> Close | None:
        try:
            async with self._tasks:
                self._begin(first)
                reader = self._tasks.create_task(self._read())
                close = await self._write()
                await self._sessions.end(
                    "disconnected" if close is None else "slow_client" if close is _SLOW else "closed"
                )
                if close is not None and close.grace_s and not self._gone.is_set():
                    await self._grace(close.grace_s)
                reader.cancel()
        finally:
            self._await_nothing()
        return close

    # Sessions

    def _begin(self, first: SessionRequest | None) -> None:
        try:
            if first is None:
                self._await_request()
            else:
                self._sessions.open(first, self._tasks)
        except Overloaded as refusal:
            self._refuse(refusal)
        self._flush()

    async def _follow(self, request: SessionRequest) -> None:
        await self._sessions.over()
        self._await_nothing()
        try:
            await self._sessions.follow(request, self._tasks)
        except Overloaded as refusal:
            self._refuse(refusal)

    def _refuse(self, refusal: Overloaded) -> None:
        # A refused handshake would reach the SDK's users as a timeout without a reason: an error it
        # understands takes the place of the greeting.
        self._protocol.messages_to_send()
        self._emit(Closing(refusal))

    def _session_over(self) -> bool:
        goes_on = not (self._ending or self._gone.is_set())
        if goes_on:
            self._await_request()
        else:
            self._outbox.close()
        return goes_on

    @property
    def _ending(self) -> bool:
        return self._failed or self._protocol.close_expected is not None

    def _await_request(self) -> None:
        self._unused = asyncio.get_running_loop().call_later(_UNUSED_S, self._outbox.close)

    def _await_nothing(self) -> None:
        if self._unused is not None:
            self._unused.cancel()

    # Reader

    async def _read(self) -> None:
        worked_s = 0.0
        try:
            while (message := await self._receive()) is not None:
                began = time.perf_counter()
                if not self._ending:
                    await self._take(message)
                worked_s += time.perf_counter() - began
                if worked_s >= _TURN_S:
                    worked_s = 0.0
                    await asyncio.sleep(0)
        except Exception:  # noqa: BLE001 - the boundary of a connection
            error = internal_error(_log, "connection failed")
            if self._sessions.live is None:
                self._emit(Closing(error))
            else:
                self._sessions.live.end("error", error)
            self._outbox.close()
            return
        self._gone.set()
        if self._sessions.live is not None:
            await self._sessions.live.submit(Disconnect())
        self._outbox.close()

    async def _receive(self) -> str | bytes | None:
        """Return the next message, or None when the client is gone."""
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            return None
        text: str | None = event.get("text")
        data: bytes | None = event.get("bytes")
        return text if text is not None else data or b""

    async def _take(self, message: str | bytes) -> None:
        if self._sessions.live is not None:
            self._sessions.live.touch()
        if len(message) > _PARSE_ON_WORKER_BYTES:
            parsed: Any = await asyncio.to_thread(self._protocol.parse, message)
        else:
            parsed = self._protocol.parse(message)
        self._protocol.receive(parsed)
        request = self._protocol.session_to_open()
        if request is not None:
            await self._follow(request)
        commands, live = self._protocol.commands_received(), self._sessions.live
        self._flush()
        if live is not None:
            await self._submit(commands, live)
            await live.room()

    async def _submit(self, commands: Sequence[Command], live: LiveSession) -> None:
        for command in commands:
            await live.submit(command)

    # Writer

    def _emit(self, event: Event) -> None:
        try:
            self._protocol.send_event(event)
        except Exception:  # noqa: BLE001 - a protocol that fails must not take the session's driver with it
            _log.exception("connection failed")
            self._failed = True
            self._outbox.close()
            return
        if self._sessions.live is not None and (commands := self._protocol.commands_received()):
            self._tasks.create_task(self._submit(commands, self._sessions.live))
        if isinstance(event, Partial):
            before, self._shown = self._shown, (self._sessions.opened, event.item)
            self._flush(replaces=self._shown if before == self._shown else None)  # a first one may say that it is
        else:
            self._flush()

    def _flush(self, replaces: tuple[int, int] | None = None) -> None:
        for code in self._protocol.errors_told():
            self._services.metrics.errors.labels(code).inc()
        messages = self._protocol.messages_to_send()
        alone = len(messages) == 1
        for message in messages:
            self._outbox.put(message, replaces=replaces if alone else None)
        if self._protocol.close_expected is not None:
            self._outbox.close()

    async def _write(self) -> Close | None:
        """Send what there is until the conversation ends; return how to close, None when the client is gone."""
        try:
            while True:
                message = await self._outbox.get()
                async with asyncio.timeout(self._send_timeout_s):
                    await self._send(message)
        except OutboxClosed:
            return None if self._gone.is_set() else self._closing()
        except (OutboxOverflow, TimeoutError):
            return _SLOW
        except (WebSocketDisconnect, RuntimeError):  # the latter when uvicorn itself has closed: a message too long
            self._gone.set()
            return None

    async def _send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self._websocket.send_text(message)
        else:
            await self._websocket.send_bytes(message)

    # The end

    def _closing(self) -> Close:
        close = _FAULT if self._failed else self._protocol.close_expected or _UNUSED
        if self._services.state == "draining" and close.code == 1000:
            return Close(1001, "the server is shutting down", min(close.grace_s, _SHUTDOWN_GRACE_S))
        return close

    async def _grace(self, grace_s: float) -> None:
        """Let the client close first; what it still sends is read and ignored."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._gone.wait()

    async def _close(self, close: Close | None) -> None:
        if close is None or self._gone.is_set() or self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        if close.code != _UNUSED.code:
            _log.info("connection closed", extra={"close_code": close.code, "close_reason": close.reason})
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(self._send_timeout_s):
                await self._websocket.close(close.code, close.reason)
