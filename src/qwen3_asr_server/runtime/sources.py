"""Where recordings come from: an upload, a data URL, an http(s) URL, a path on this machine; each becomes a local file.

`async with fetched(source, limits) as path` gives the file for as long as the block lasts. What is written has no name
in any folder (`/dev/fd/…` leads to it), so nothing stays behind, not even after a kill. A file of this machine is
opened once, folder by folder, so that what was checked is what is read.

It knows neither media formats nor doors: those say in their own form what is raised here. Called by the doors.
"""

import asyncio
import base64
import os
import stat
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Final, assert_never
from urllib.parse import unquote, unquote_to_bytes

from qwen3_asr_server.errors import IdleTimeout, InvalidValue, Overloaded, SourceRefused, SourceUnreachable, TooLarge
from qwen3_asr_server.runtime._download import WebLimits, download

_WRITE_BYTES: Final = 1024 * 1024
_BASE64_STEP: Final = 4 * 256 * 1024
_TO_PLAIN: Final = str.maketrans({"-": "+", "_": "/", " ": None, "\n": None, "\r": None, "\t": None})
"""URL-safe letters to the usual ones; white space is nothing."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that a client sends."""

    chunks: AsyncIterable[bytes] = field(repr=False)
    """Its bytes, as they come."""


@dataclass(frozen=True, slots=True)
class DataUrl:
    """A file within a URL: `data:audio/wav;base64,…`. The type it names is not believed."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebUrl:
    """A file on a web server."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerPath:
    """A file on this machine, by its absolute path."""

    path: str = field(repr=False)


Source = Upload | DataUrl | WebUrl | ServerPath


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """What a source may cost, and where it may lie."""

    max_bytes: int = 2 * 1024**3
    upload_stall_s: float = 60
    """Longest wait for a client's next bytes, in seconds."""
    upload_s: float = 3600
    """Longest upload, in seconds: a byte now and then would hold its place without end."""
    web: WebLimits = field(default_factory=WebLimits)
    roots: tuple[Path, ...] = ()
    """Folders that a `ServerPath` may lie under, absolute; none: there are no such sources."""


def source_of(text: str) -> Source:
    """Return the source that a string names: a data URL, an http(s) URL, a `file://` URL or an absolute path.

    Raises:
        InvalidValue: it is none of them.
    """
    start = text[:8].lower()
    if start.startswith("data:"):
        return DataUrl(text)
    if start.startswith(("http://", "https://")):
        return WebUrl(text)
    if start.startswith("file://"):
        host, slash, path = text[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise InvalidValue("A file:// URL names a path on this server, and no host.")
        return ServerPath(unquote(slash + path))
    if text.startswith("/"):
        return ServerPath(text)
    raise InvalidValue("The audio must be an http(s) URL, a data URL, or a path on this server.")


@asynccontextmanager
async def fetched(source: Source, limits: SourceLimits) -> AsyncIterator[Path]:
    """Yield a path at which the source's bytes can be read, while the block lasts.

    The path has no telling name. Whoever opens it begins at the start of the file.

    Raises:
        SourceRefused: the server does not read from there.
        SourceUnreachable: there is nothing, or it does not come in time.
        TooLarge: it is over the limit.
        InvalidValue: a data URL or an address that cannot be read.
        IdleTimeout: an upload stops before its end.
        Overloaded: there is no room to store it.
    """
    if isinstance(source, ServerPath):
        with await asyncio.to_thread(_opened, source.path, limits) as file:
            yield Path(f"/dev/fd/{file.fileno()}")
        return
    with _room_needed():
        stored = await asyncio.to_thread(tempfile.TemporaryFile)
    with stored:
        store = _Store(stored, limits.max_bytes)
        match source:
            case Upload(chunks):
                await _receive(chunks, limits, store)
            case DataUrl(url):
                await _decode(url, store)
            case WebUrl(url):
                await download(url, limits.max_bytes, limits.web, store.write)
            case _:
                assert_never(source)
        await store.finish()
        yield Path(f"/dev/fd/{stored.fileno()}")


class _Store:
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
        with _room_needed():
            await asyncio.to_thread(self._file.write, data)
            await asyncio.to_thread(self._file.flush)

    def demand_room(self, size_bytes: int) -> None:
        """Raise unless so much more may come."""
        if size_bytes > self._left_bytes:
            raise _too_large(self._max_bytes)


@contextmanager
def _room_needed() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise Overloaded("The server has no room to store the file.") from problem


async def _receive(chunks: AsyncIterable[bytes], limits: SourceLimits, store: _Store) -> None:
    coming = aiter(chunks)
    try:
        async with asyncio.timeout(limits.upload_s):
            while True:
                async with asyncio.timeout(limits.upload_stall_s):
                    chunk = await anext(coming, None)
                if chunk is None:
                    return
                await store.write(chunk)
    except TimeoutError:
        raise IdleTimeout("The upload stopped before its end, or takes too long.") from None


async def _decode(url: str, store: _Store) -> None:
    """Store the bytes in a data URL, a piece at a time: it may be long."""
    head, comma, text = url.partition(",")
    if not comma:
        raise InvalidValue("The data URL has no comma, so it holds no data.")
    if not head.lower().endswith(";base64"):
        try:
            data = await asyncio.to_thread(unquote_to_bytes, text)
        except UnicodeEncodeError:
            raise InvalidValue("The data URL holds what is no text.") from None
        await store.write(data)
        return
    text = await asyncio.to_thread(_plain_base64, text)
    store.demand_room(len(text) // 4 * 3 - 2)
    for start in range(0, len(text), _BASE64_STEP):
        piece = text[start : start + _BASE64_STEP]
        try:
            data = await asyncio.to_thread(base64.b64decode, piece, validate=True)
        except ValueError:
            raise InvalidValue("The data URL is not valid base64.") from None
        await store.write(data)


def _plain_base64(text: str) -> str:
    """Return base64 of any dialect in the usual one: percent-encoded, URL-safe, wrapped or without padding."""
    plain = (unquote(text) if "%" in text else text).translate(_TO_PLAIN).rstrip("=")
    return plain + "=" * (-len(plain) % 4)


def _opened(path: str, limits: SourceLimits) -> BinaryIO:
    """Open a file under a root."""
    number = _open_below(path, limits.roots)
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode):
        os.close(number)
        raise SourceRefused("This path is no file.")
    # An object and no number, so that it is closed also when nobody waits for it any more.
    file = os.fdopen(number, "rb", buffering=0)
    if found.st_size > limits.max_bytes:
        file.close()
        raise _too_large(limits.max_bytes)
    return file


def _open_below(path: str, roots: tuple[Path, ...]) -> int:
    """Open a path under a root without following any link below the root, and return its descriptor."""
    parts = Path(path).parts
    root = next((root for root in roots if parts[: len(root.parts)] == root.parts), None)
    if root is None or ".." in parts:
        raise SourceRefused("This path is not under a folder that the server may read from.")
    *folders, name = parts[len(root.parts) :] or (".",)
    folder = -1
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for step in folders:
            above = folder
            folder = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            os.close(above)
        # Without O_NONBLOCK opening a named pipe would wait for its writer.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise SourceUnreachable("There is no such file on the server.", status=404) from None
    except (OSError, ValueError):  # the latter for names that no file can have
        raise SourceRefused("The server may not read this path: links are not followed.") from None
    finally:
        if folder >= 0:
            os.close(folder)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The file is larger than {max_bytes} bytes.")
