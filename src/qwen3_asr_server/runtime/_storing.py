"""Writing what clients send to a file, bit by bit and within bounds; what `sources` and `uploads` share.

Knows neither where the bytes come from nor what becomes of the file.
"""

import asyncio
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, TypeVar

from qwen3_asr_server.errors import IdleTimeout, Overloaded, TooLarge

LONGEST_UPLOAD_S: Final = 3600.0
"""A byte now and then would hold its place without end."""
_WRITE_BYTES: Final = 1024 * 1024

T = TypeVar("T")


class FileWriter:
    """A file that is written on a thread, in large pieces.

    Cancelled in mid-write, closing the file waits for that write: both take the file's own lock.
    """

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._waiting = bytearray()
        self._left_bytes = max_bytes
        self._max_bytes = max_bytes

    async def write(self, data: bytes) -> None:
        """Append some bytes."""
        self.demand_room(len(data))
        self._left_bytes -= len(data)
        self._waiting += data
        if len(self._waiting) >= _WRITE_BYTES:
            await self.finish()

    async def finish(self) -> None:
        """Have everything in the file."""
        data, self._waiting = self._waiting, bytearray()
        with room_needed():
            await asyncio.to_thread(self._file.write, data)
            await asyncio.to_thread(self._file.flush)

    def demand_room(self, size_bytes: int) -> None:
        """Raise unless so much more may come."""
        if size_bytes > self._left_bytes:
            raise too_large(self._max_bytes)


@contextmanager
def room_needed() -> Iterator[None]:
    """Say of what the disk refuses, inside the block, that there is no room.

    Raises:
        Overloaded: it did.
    """
    try:
        yield
    except OSError as problem:
        raise Overloaded("The server has no room to store the file.") from problem


@contextmanager
def closing(file: IO[bytes]) -> Iterator[None]:
    """Close a file at the end of the block.

    Closing tries once more to write what a full disk has refused, and that was said then.
    """
    try:
        yield
    finally:
        with suppress(OSError):
            file.close()


async def receive(
    chunks: AsyncIterable[bytes], stall_s: float, store: FileWriter, longest_s: float = LONGEST_UPLOAD_S
) -> None:
    """Write everything that a client sends.

    Args:
        chunks: the bytes, as they come.
        stall_s: longest wait for the next ones, in seconds.
        store: where they go.
        longest_s: longest time for all of them, in seconds.

    Raises:
        IdleTimeout: the next ones do not come, or all take too long.
        TooLarge: there are more than the writer takes.
        Overloaded: the disk is full.
    """
    coming = aiter(chunks)
    try:
        async with asyncio.timeout(longest_s):
            while True:
                async with asyncio.timeout(stall_s):
                    chunk = await anext(coming, None)
                if chunk is None:
                    return
                await store.write(chunk)
    except TimeoutError:
        raise IdleTimeout("The upload stopped before its end, or takes too long.") from None


async def made_on_thread(make: Callable[[], T], give_back: Callable[[T], object]) -> T:
    """Make something on a thread, and give it back if the one who wanted it leaves meanwhile."""
    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(
            lambda made: None if made.cancelled() or made.exception() is not None else give_back(made.result())
        )
        raise


def private_folder(path: Path) -> Path:
    """Return a folder, made for its owner only if it is not there, as are those above it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    return path


def too_large(max_bytes: int) -> TooLarge:
    """Return the error for a file that is over its limit."""
    return TooLarge(f"The file is larger than {max_bytes} bytes.")
