"""Any audio or video file as float32 at 16 kHz, a second at a time, decoded in a process of its own.

`async with open_media(path, limits) as media` starts the process, and leaving the block ends it, whatever happened in
between. The file is never in memory as a whole: a few seconds are read ahead, then the process waits for its reader.
A file that hangs it, crashes it or wants too much of it costs that file only.

It knows no codec (`_media_track` does), not where the file came from (`sources` does), and not what becomes of
the audio. Called by `offline`.
"""

import asyncio
import json
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NoReturn, Self

import numpy as np

from qwen3_asr_server.domain import Samples
from qwen3_asr_server.errors import AsrServerError, MediaError, TooLong
from qwen3_asr_server.runtime._media_wire import (
    HEADER,
    MAX_BODY_BYTES,
    Ended,
    Fault,
    MediaKind,
    Message,
    Opened,
    Task,
    parsed,
)
from qwen3_asr_server.runtime._storing import too_large

WORKER: Final = (sys.executable, "-P", "-m", "qwen3_asr_server.runtime._media_worker")
"""The command line of a decoding process."""

READ_AHEAD_BYTES: Final = 128 * 1024
"""Two seconds of mono. The reader holds at most twice this, the pipe between the processes 64 KiB."""

_PASSED_ON: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG")
"""What the process needs of the environment; the server's keys are not its business."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What one file may cost."""

    max_bytes: int = 2 * 1024**3
    """Of the file."""
    max_audio_s: float = 12 * 3600
    max_channels: int = 8
    """Where channels are kept apart."""
    memory_bytes: int = 512 * 1024**2
    """Of the decoding process, besides its libraries. Linux keeps to it, macOS does not."""
    cpu_s: float = 20
    """Processor time before the first second of audio, in seconds."""
    speed: float = 20
    """Seconds of audio that each further second of processor time must yield."""
    stall_s: float = 60
    """Longest time without a sign of the decoding process, in seconds, while somebody waits for it."""


class MediaReader:
    """A file that is being decoded. Made by `open_media`, entered once and read once."""

    channels: int
    """How many rows each block has; 1 unless channels are kept apart."""
    duration_s: float | None
    """What the file says of itself, if it does and can be believed. It may still be wrong."""
    kind: MediaKind
    """What its audio was before it was decoded."""
    cut_short: bool
    """Known after the last block: the file ends before it should, as after a broken download."""

    def __init__(self, path: Path, limits: MediaLimits, *, split_channels: bool) -> None:
        self._path = path
        self._limits = limits
        self._split_channels = split_channels
        self._process: asyncio.subprocess.Process | None = None
        self.cut_short = False

    async def __aenter__(self) -> Self:
        """Start decoding, and wait until it is known what the file holds.

        Raises:
            MediaError: it holds no audio that can be decoded.
            TooLarge: it is over its limit; `TooLong` where it says that it has too much audio.
        """
        try:
            await self._start()
            match await self._next():
                case Opened(channels, duration_s, kind):
                    self.channels, self.duration_s, self.kind = channels, duration_s, kind
                case Fault() as fault:
                    raise _error(fault, self._limits)
                case _:
                    self._fail("out of step")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        await self._end()

    async def blocks(self) -> AsyncIterator[Samples]:
        """Yield the audio as float32 [channels, n], 16 kHz, in [-1, 1], about a second each; read-only.

        Raises:
            MediaError: decoding failed. Damage that can be passed over does not end it.
            TooLong: there is more audio than the limit.
        """
        while True:
            match await self._next():
                case bytes(body) if body and len(body) % (4 * self.channels) == 0:
                    yield np.frombuffer(body, np.float32).reshape(self.channels, -1)
                case Ended(cut_short):
                    self.cut_short = cut_short
                    if cut_short:
                        _log.info("a file broke off before its end; what was there has been decoded")
                    return
                case Fault() as fault:
                    raise _error(fault, self._limits)
                case _:
                    self._fail("out of step")

    async def _start(self) -> None:
        task = Task(
            split_channels=self._split_channels,
            max_channels=self._limits.max_channels,
            max_audio_s=self._limits.max_audio_s,
            memory_bytes=self._limits.memory_bytes,
            cpu_s=self._limits.cpu_s,
            speed=self._limits.speed,
        )
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # One thread is all it may use; each further one would take address space.
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with await asyncio.to_thread(_opened, self._path, self._limits.max_bytes) as file:
            # A session of its own: Ctrl-C in the terminal is for the server.
            self._process = await asyncio.create_subprocess_exec(
                *WORKER,
                json.dumps(asdict(task)),
                stdin=file,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                limit=READ_AHEAD_BYTES,
                start_new_session=True,
            )

    async def _next(self) -> Message:
        """Return the next message."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(self._limits.stall_s):
                kind, length = HEADER.unpack(await self._process.stdout.readexactly(HEADER.size))
                if length > MAX_BODY_BYTES:
                    self._fail("out of step")
                body = await self._process.stdout.readexactly(length)
        except TimeoutError:
            self._fail("no answer in time")
        except asyncio.IncompleteReadError:
            await self._end()
            self._fail(f"it ended with {self._process.returncode}")
        try:
            return parsed(kind, body)
        except ValueError:
            self._fail("out of step")

    def _fail(self, reason: str) -> NoReturn:
        """Give up on a process that did not say itself what is wrong. Nothing of the file is logged."""
        _log.warning("decoding a file failed: %s", reason)
        if self._process is not None and self._process.returncode == -signal.SIGXCPU:
            raise MediaError("The file takes too long to decode.")
        raise MediaError("The file cannot be decoded.")

    async def _end(self) -> None:
        """End the process, if it has not ended. Safe more than once."""
        if self._process is None:
            return
        if self._process.returncode is None:
            # Not by the handle: that would also collect the exit status, under the feet of the loop's watcher.
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        assert self._process.stdout is not None
        # What is left in the pipe keeps it open, and with it the handle of the process.
        while await self._process.stdout.read(READ_AHEAD_BYTES):
            pass
        await self._process.wait()


def open_media(path: Path, limits: MediaLimits, *, split_channels: bool = False) -> MediaReader:
    """Return the reader of a file; entering it starts the process.

    Args:
        path: of a regular file in any format; its name does not matter.
        limits: what it may cost.
        split_channels: keep the channels apart, as for a telephone call with a party on each; else they are mixed.
    """
    return MediaReader(path, limits, split_channels=split_channels)


def _opened(path: Path, max_bytes: int) -> BinaryIO:
    try:
        # Without O_NONBLOCK opening a named pipe would wait for its writer.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise MediaError("The file cannot be opened.") from None
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode):
        os.close(number)
        raise MediaError("This is no file.")
    # An object and no number, so that it is closed also when nobody waits for it any more.
    file = os.fdopen(number, "rb", buffering=0)
    try:
        if found.st_size == 0:
            raise MediaError("The file is empty.")
        if found.st_size > max_bytes:
            raise too_large(max_bytes)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _error(fault: Fault, limits: MediaLimits) -> AsrServerError:
    match fault:
        case Fault.UNKNOWN_FORMAT:
            return MediaError("The file is of an unknown format, or its beginning or end is missing.")
        case Fault.NO_AUDIO:
            return MediaError("The file holds no audio.")
        case Fault.UNKNOWN_CODEC:
            return MediaError("The file's audio is coded in a way that is not supported.")
        case Fault.DAMAGED:
            return MediaError("The file holds no audio that can be decoded: it is empty or damaged.")
        case Fault.RATE:
            return MediaError("The file's sampling rate is not between 4 and 192 kHz.")
        case Fault.CHANNELS:
            return MediaError(f"The file has more than {limits.max_channels} channels to keep apart.")
        case Fault.TOO_LONG:
            return TooLong(f"The file has more than {limits.max_audio_s:g} s of audio.")
        case Fault.MEMORY:
            return MediaError("The file takes too much memory to decode.")
