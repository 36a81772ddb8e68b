"""A bare WebSocket client that speaks JSON and writes down what comes."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from support.invariants import Frame

WAIT_S = 20.0


class RawClient:
    """One connection; `frames` holds everything received so far."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[Frame] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def append(self, pcm: bytes, packet_bytes: int = 3200) -> None:
        for start in range(0, len(pcm), packet_bytes):
            packet = base64.b64encode(pcm[start : start + packet_bytes]).decode()
            await self.send("input_audio_buffer.append", audio=packet)

    async def read_until(self, kind: str) -> Frame:
        """Read up to the next event of a type and return it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                frame: Frame = json.loads(await self.socket.recv())
                self.frames.append(frame)
                if frame["type"] == kind:
                    return frame


@asynccontextmanager
async def raw_client(url: str, **options: Any) -> AsyncIterator[RawClient]:
    """Connect; `options` go to `websockets.connect`."""
    async with connect(url, proxy=None, **{"open_timeout": 5, **options}) as socket:
        yield RawClient(socket)
