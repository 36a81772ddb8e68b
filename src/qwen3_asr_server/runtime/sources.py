"""Where recordings come from: uploads, data URLs, http(s) URLs, paths on this machine; each becomes a local file.

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
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import BinaryIO, Final, assert_never
from urllib.parse import unquote, unquote_to_bytes

from qwen3_asr_server.errors import InvalidValue, SourceRefused, SourceUnreachable
from qwen3_asr_server.runtime._download import WebLimits, download
from qwen3_asr_server.runtime._storing import (
    LONGEST_UPLOAD_S,
    FileWriter,
    closing,
    made_on_thread,
    receive,
    room_needed,
    too_large,
)
from qwen3_asr_server.runtime.uploads import UploadFolder, no_such_upload

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


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """A file that a client has sent before, by the name it was given then: `oss://<folder>/<name>`."""

    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A file that came within a data URL and is stored already, see `unpacked`."""

    path: Path


Source = Upload | DataUrl | WebUrl | ServerPath | StoredUpload | Unpacked


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """What a source may cost, and where it may lie."""

    max_bytes: int = 2 * 1024**3
    upload_stall_s: float = 60
    """Longest wait for a client's next bytes, in seconds."""
    upload_s: float = LONGEST_UPLOAD_S
    """Longest upload, in seconds."""
    web: WebLimits = field(default_factory=WebLimits)
    roots: tuple[Path, ...] = ()
    """Folders that a `ServerPath` may lie under, absolute; none: there are no such sources."""
    uploads: UploadFolder | None = None
    """Where each `StoredUpload` lies; None: there are no such sources."""


def source_of(text: str) -> Source:
    """Return the source that a string names: a data, http(s), `file://` or `oss://` URL, or an absolute path.

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
    if start.startswith("oss://"):
        return StoredUpload(text[len("oss://") :])
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
    if isinstance(source, Unpacked):
        yield source.path
        return
    if isinstance(source, ServerPath | StoredUpload):
        with await made_on_thread(partial(_opened, source, limits), methodcaller("close")) as file:
            yield Path(f"/dev/fd/{file.fileno()}")
        return
    with room_needed():
        stored = await made_on_thread(tempfile.TemporaryFile, methodcaller("close"))
    with closing(stored):
        store = FileWriter(stored, limits.max_bytes)
        await _write(source, store, limits)
        del source  # a data URL is longer than the file that it holds
        await store.finish()
        yield Path(f"/dev/fd/{stored.fileno()}")


async def unpacked(source: Source, limits: SourceLimits, files: AsyncExitStack) -> Source:
    """Store what a data URL holds, so that nobody has to keep the URL; return other sources as they are.

    Args:
        source: anything.
        limits: what it may cost.
        files: keeps the file until it is closed.

    Raises:
        AsrServerError: as `fetched` does for data URLs.
    """
    if not isinstance(source, DataUrl):
        return source
    return Unpacked(await files.enter_async_context(fetched(source, limits)))


async def _write(source: Upload | DataUrl | WebUrl, store: FileWriter, limits: SourceLimits) -> None:
    match source:
        case Upload(chunks):
            await receive(chunks, limits.upload_stall_s, store, limits.upload_s)
        case DataUrl(url):
            await _decode(url, store)
        case WebUrl(url):
            await download(url, limits.max_bytes, limits.web, store.write)
        case _:
            assert_never(source)


async def _decode(url: str, store: FileWriter) -> None:
    """Store the bytes in a data URL, a piece at a time: it may be long."""
    first = url.find(",") + 1
    if not first:
        raise InvalidValue("The data URL has no comma, so it holds no data.")
    if not url[: first - 1].lower().endswith(";base64"):
        try:
            data = await asyncio.to_thread(unquote_to_bytes, url[first:])
        except UnicodeEncodeError:
            raise InvalidValue("The data URL holds what is no text.") from None
        await store.write(data)
        return
    if "%" in url:
        url, first = await asyncio.to_thread(unquote, url[first:]), 0
    rest = ""
    for start in range(first, len(url), _BASE64_STEP):
        data, rest = await asyncio.to_thread(_from_base64, rest + url[start : start + _BASE64_STEP])
        await store.write(data)
    data, _ = _from_base64(rest, last=True)
    await store.write(data)


def _from_base64(text: str, *, last: bool = False) -> tuple[bytes, str]:
    """Return the bytes in base64 of any dialect (URL-safe, wrapped, without padding), and letters for the next piece.

    Raises:
        InvalidValue: it is none.
    """
    plain = text.translate(_TO_PLAIN)
    letters = plain.rstrip("=")
    plain = letters + "=" * (-len(letters) % 4) if last else plain
    whole = len(plain) if last else len(letters) // 4 * 4
    try:
        return base64.b64decode(plain[:whole], validate=True), plain[whole:]
    except ValueError:
        raise InvalidValue("The data URL is not valid base64.") from None


def _opened(source: ServerPath | StoredUpload, limits: SourceLimits) -> BinaryIO:
    """Open a file of this machine, if clients may have it."""
    if isinstance(source, ServerPath):
        number = _open_below(source.path, limits.roots)
    elif limits.uploads is None:
        raise no_such_upload()
    else:
        number = _open_below(str(limits.uploads.place_of(source.key)), (limits.uploads.path,))
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode):
        os.close(number)
        raise SourceRefused("This path is no file.")
    # An object and no number, so that it is closed also when nobody waits for it any more.
    file = os.fdopen(number, "rb", buffering=0)
    try:
        if isinstance(source, StoredUpload) and limits.uploads is not None:
            limits.uploads.demand_kept(found.st_mtime)
        if found.st_size > limits.max_bytes:
            raise too_large(limits.max_bytes)
    except BaseException:
        file.close()
        raise
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
