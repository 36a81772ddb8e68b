"""Requests for doors, without a server."""

import asyncio
from collections.abc import AsyncIterator

from starlette.datastructures import Headers

from qwen3_asr_server.frontends._answer import Exchange


class Sent(Exchange):
    """A request without a way back, whose body comes with a pause behind each piece."""

    def __init__(self, *pieces: bytes, pause_s: float = 0, **headers: str) -> None:
        self.headers = Headers(headers)
        self._pieces = pieces
        self._pause_s = pause_s

    async def body(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
            await asyncio.sleep(self._pause_s)
