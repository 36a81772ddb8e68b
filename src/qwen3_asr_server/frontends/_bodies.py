"""Bodies that are read as a whole: JSON and URL-encoded forms, some with a recording in a data URL.

    short ──▶ memory ────────────────────▶ what it says
    long  ──▶ disk, as it comes ──▶ turn ─▶ what it says, until the caller's block ends

What a long one says takes several times its length in memory, so only a few are there at a time, and none while its
client still sends. Callers store the recording before their block ends, and keep nothing of the body. Knows no door
and no field; used by `_form` and the doors.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from qwen3_asr_server.errors import IdleTimeout, InvalidValue, Overloaded, TooLarge
from qwen3_asr_server.frontends._answer import Exchange
from qwen3_asr_server.runtime.sources import SourceLimits, Upload, fetched

LONGEST_BODY_S: Final = 600.0
"""A byte now and then would hold its place without end."""
LONG_BYTES: Final = 256 * 1024
"""A body that takes more than about a millisecond to read, and more memory than may be taken a hundred times."""
LONG_AT_ONCE: Final = 2
"""Long bodies in memory: one is read while another is written to its file."""

T = TypeVar("T")


class Bodies:
    """The bodies of all requests together.

    Args:
        max_bytes: longest body.
        stall_s: longest wait for the next bytes of one, and for its turn, in seconds.
    """

    def __init__(self, max_bytes: int, stall_s: float) -> None:
        self._limits = SourceLimits(max_bytes=max_bytes, upload_stall_s=stall_s, upload_s=LONGEST_BODY_S)
        self._turns = asyncio.Semaphore(LONG_AT_ONCE)
        # One thread for all: the allocator keeps much of what a thread has freed, for that thread only.
        self._reader = ThreadPoolExecutor(1, "body")

    @asynccontextmanager
    async def read(self, exchange: Exchange, parse: Callable[[bytes | bytearray], T]) -> AsyncIterator[T]:
        """Yield what the body of a request says. The block is to be short: others wait for its end.

        Args:
            exchange: the request.
            parse: reads a body, on a thread.

        Raises:
            TooLarge: it is too long.
            IdleTimeout: it stops before its end, or takes too long.
            Overloaded: its turn does not come in time, or there is no room to store it.
            AsrServerError: from `parse`.
        """
        limits = self._limits
        if 0 < exchange.announced_bytes <= LONG_BYTES:
            body = await whole_body(exchange, limits.max_bytes, limits.upload_stall_s)
            yield await asyncio.to_thread(parse, body)
            return
        async with fetched(Upload(_within(exchange, limits.max_bytes)), limits) as path, self._turn():
            with _opened(path) as file:
                said = await asyncio.get_running_loop().run_in_executor(self._reader, _parsed, parse, file)
            yield said

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limits.upload_stall_s):
                await self._turns.acquire()
        except TimeoutError:
            raise Overloaded("Too many long requests; try again later.") from None
        try:
            yield
        finally:
            self._turns.release()


async def whole_body(exchange: Exchange, max_bytes: int, stall_s: float) -> bytearray:
    """Return the body of a request without a file.

    Args:
        exchange: the request.
        max_bytes: longest body.
        stall_s: longest wait for its next bytes, in seconds.

    Raises:
        TooLarge: it is longer.
        IdleTimeout: it stops before its end, or takes too long.
    """
    body = bytearray()
    coming = _within(exchange, max_bytes)
    try:
        async with asyncio.timeout(LONGEST_BODY_S):
            while True:
                async with asyncio.timeout(stall_s):
                    chunk = await anext(coming, None)
                if chunk is None:
                    return body
                body += chunk
    except TimeoutError:
        raise IdleTimeout("The request stopped before its end, or takes too long.") from None


def json_object(body: bytes | bytearray) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        InvalidValue: it is none.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidValue("The body is not valid JSON.") from None
    if not isinstance(values, dict):
        raise InvalidValue("The body is not a JSON object.")
    return values


def _opened(path: Path) -> BinaryIO:
    """Open a file here and not on a thread, where its path may lead to another one after a client has left."""
    return path.open("rb")


def _parsed(parse: Callable[[bytes | bytearray], T], file: BinaryIO) -> T:
    return parse(file.read())


async def _within(exchange: Exchange, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield a body as it comes, as long as it is not too long."""
    size = 0
    if exchange.announced_bytes <= max_bytes:
        async for chunk in exchange.body():
            size += len(chunk)
            if size > max_bytes:
                break
            yield chunk
        else:
            return
    raise TooLarge(f"A request without a file has at most {max_bytes} bytes.")
