"""Files that clients have sent for later: kept in a folder for so long, then removed.

    <DATA_DIR>/uploads/<folder>/<digest of the name>     whole files, 0600
                       .part-…                           what is being received; locked by whoever writes it

A client knows a file as `<folder>/<name>`. The folder is random and long, so that only who was told finds the file; the
name never becomes part of a path. A file appears in its place when it is whole. What a killed server leaves half
written has no lock any more, and goes at the next sweep. Several servers may share the folder.

Knows no HTTP and no policies: the door decides who may store what. `sources` reads the files.
"""

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final

from qwen3_asr_server.errors import InvalidValue, Overloaded, SourceUnreachable
from qwen3_asr_server.runtime._storing import FileWriter, closing, made_on_thread, private_folder, receive, room_needed

SWEEP_INTERVAL_S: Final = 600.0
"""Between two sweeps, unless files are kept for a shorter time."""
_FOLDER: Final = re.compile(r"[0-9a-f]{32}")
_PART: Final = ".part-"
_LEAST_BYTES: Final = 4096
"""What a small file counts: a disk gives whole blocks, and has not any number of names."""
_YOUNG_S: Final = 2.0
"""A part of this age may not have its lock yet."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UploadFolder:
    """Where the files lie, and how long they are kept."""

    path: Path
    """Need not exist."""
    keep_s: float
    clock: Callable[[], float] = time.time
    """Seconds since 1970, as files have their times."""

    def place_of(self, key: str) -> Path:
        """Return where the file lies that a client knows as `<folder>/<name>`.

        Raises:
            SourceUnreachable: no file can have this name.
        """
        folder, _, name = key.partition("/")
        if not _FOLDER.fullmatch(folder) or not is_name(name):
            raise no_such_upload()
        return self.path / folder / hashlib.sha256(name.encode()).hexdigest()[:32]

    def demand_kept(self, stored_at: float) -> None:
        """Raise unless a file of this time is still to be had.

        Raises:
            SourceUnreachable: its time is over.
        """
        if self.clock() - stored_at >= self.keep_s:
            raise no_such_upload()


def is_name(name: str) -> bool:
    """Say whether a file may have this name: it is a last part of a path, and no more than a path may have."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= 255 and name not in (".", "..") and not set("/\0") & set(name)


def no_such_upload() -> SourceUnreachable:
    """Return the error for a file that never was, or is not any more."""
    return SourceUnreachable("There is no such upload, or it has been removed: send the file again.", status=404)


class Uploads:
    """Store files and remove them in time.

    Args:
        folder: where they lie.
        max_total_bytes: most that all of them may take.
    """

    def __init__(self, folder: UploadFolder, max_total_bytes: int) -> None:
        self.folder = folder
        self._max_total_bytes = max_total_bytes
        self._stored_bytes = 0
        self._coming_bytes = 0
        self._settled = asyncio.Lock()

    def demand_room(self, size_bytes: int = 0) -> None:
        """Raise unless so much more may come.

        Raises:
            Overloaded: it may not.
        """
        if self._stored_bytes + self._coming_bytes + size_bytes >= self._max_total_bytes:
            raise Overloaded(
                "The server keeps as many uploads as it may; try again later.", retry_after_s=SWEEP_INTERVAL_S
            )

    async def store(self, key: str, chunks: AsyncIterable[bytes], max_bytes: int, stall_s: float) -> None:
        """Keep a file.

        Args:
            key: what the client will call it, `<folder>/<name>`.
            chunks: its bytes, as they come.
            max_bytes: largest file.
            stall_s: longest wait for the next bytes, in seconds.

        Raises:
            InvalidValue: there is one of this name.
            SourceUnreachable: no file can have this name.
            TooLarge: it is over its limit.
            IdleTimeout: it stops before its end.
            Overloaded: there is no room.
        """
        place = self.folder.place_of(key)
        self.demand_room()
        with room_needed():
            part = await made_on_thread(partial(_Part, self.folder.path), _Part.end)
        try:
            writer = FileWriter(part.file, max_bytes)
            await receive(self._counted(chunks, part), stall_s, writer)
            await writer.finish()
            async with self._settled:
                with room_needed():
                    await asyncio.to_thread(part.become, place)
                self._stored_bytes += _counted_bytes(part.size_bytes)
        finally:
            self._coming_bytes -= part.size_bytes
            part.end()

    async def run(self) -> None:
        """Remove what is too old, now and then, until cancelled."""
        while True:
            try:
                await self.sweep()
            except OSError:
                _log.exception("old uploads could not be removed")
            await asyncio.sleep(min(SWEEP_INTERVAL_S, self.folder.keep_s))

    async def sweep(self) -> None:
        """Remove what is too old or was left half written, and count what is there."""
        async with self._settled:
            self._stored_bytes = await asyncio.to_thread(_sweep, self.folder)

    async def _counted(self, chunks: AsyncIterable[bytes], part: "_Part") -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.demand_room(len(chunk))
            self._coming_bytes += len(chunk)
            part.size_bytes += len(chunk)
            yield chunk


class _Part:
    """A file that is being received: locked, so that nobody takes it for a leftover.

    Args:
        folder: where it lies; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        number, name = tempfile.mkstemp(prefix=_PART, dir=private_folder(folder))
        self._path = Path(name)
        # An object and no number, so that it is closed also when nobody waits for it any more.
        self.file: IO[bytes] = os.fdopen(number, "wb")
        self.size_bytes = 0
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def become(self, place: Path) -> None:
        """Move to the place for good.

        Raises:
            InvalidValue: something is there.
        """
        private_folder(place.parent)
        if place.exists():
            raise InvalidValue("There is already an upload of this name.", param="key")
        self._path.rename(place)

    def end(self) -> None:
        """Close the file, and remove it unless it has found its place."""
        with closing(self.file):
            self._path.unlink(missing_ok=True)


def _sweep(folder: UploadFolder) -> int:
    """Remove old files, leftovers and empty folders; return the bytes of what stays."""
    if not folder.path.exists():
        return 0
    kept_bytes = 0
    now = folder.clock()
    for entry in list(folder.path.iterdir()):
        if entry.name.startswith(_PART):
            _remove_leftover(entry, now)
        elif _FOLDER.fullmatch(entry.name):
            with suppress(OSError):  # another server may have removed it
                kept_bytes += sum(_bytes_kept(file, now - folder.keep_s) for file in list(entry.iterdir()))
            with suppress(OSError):  # not empty
                entry.rmdir()
    return kept_bytes


def _bytes_kept(file: Path, too_old: float) -> int:
    """Remove a file if it is too old; return its size if not."""
    with suppress(FileNotFoundError):  # another server may have been faster
        found = file.lstat()
        if found.st_mtime > too_old:
            return _counted_bytes(found.st_size)
        file.unlink()
    return 0


def _counted_bytes(size_bytes: int) -> int:
    return max(size_bytes, _LEAST_BYTES)


def _remove_leftover(part: Path, now: float) -> None:
    """Remove what nobody writes any more."""
    with suppress(FileNotFoundError, BlockingIOError), part.open("rb") as file:
        if now - os.fstat(file.fileno()).st_mtime < _YOUNG_S:
            return
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
