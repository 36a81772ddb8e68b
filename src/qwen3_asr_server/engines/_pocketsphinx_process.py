"""One decoder process, seen from the server: start it, ask it, notice its death.

An asyncio protocol object without tasks of its own: answers and deaths arrive as callbacks and settle the one
open request. A request given up half-way (cancelled) leaves the process usable; its late answer is dropped by
number. Knows nothing about streams or who is allowed to use the process: that is the pool's business.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import Final, cast

from qwen3_asr_server.engines._pocketsphinx_wire import HEADER, MAX_BODY_BYTES, READY, Ask, Report, Told, message
from qwen3_asr_server.errors import EngineCrashed, EngineTimeout

WORKER: Final = (sys.executable, "-m", "qwen3_asr_server.engines._pocketsphinx_worker")
"""The command line of a decoder process."""

_log = logging.getLogger(__name__)


class DecoderProcess(asyncio.SubprocessProtocol):
    """A decoder in a process of its own. One request at a time.

    Args:
        command: the program and its arguments.
    """

    def __init__(self, command: tuple[str, ...] = WORKER) -> None:
        self._command = command
        self._transport: asyncio.SubprocessTransport | None = None
        self._incoming = bytearray()
        self._number = READY
        self._answer: asyncio.Future[Report] | None = None
        self._owed_s = 0.0
        self._killed = False
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return not self._killed and not self._ended.is_set()

    @property
    def pid(self) -> int | None:
        """The process's id, once it has been started."""
        return self._transport.get_pid() if self._transport else None

    async def start(self, timeout_s: float) -> None:
        """Run the program and wait until its model is loaded.

        Raises:
            EngineCrashed: it could not be run, or ended before it was ready.
            EngineTimeout: it was not ready in time, and was killed.
        """
        if self._killed:
            raise EngineCrashed("the decoder process was ended before its start")
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._ended.clear()
        try:
            # A session of its own: Ctrl-C in the terminal is for the server, which then drains.
            await loop.subprocess_exec(
                lambda: self, *self._command, stderr=asyncio.subprocess.DEVNULL, start_new_session=True
            )
            await self._settled(timeout_s)
        except OSError as problem:
            self._ended.set()
            raise EngineCrashed("a decoder process could not be started") from problem
        except asyncio.CancelledError:
            self.kill()
            raise

    async def ask(self, wish: Ask, audio: bytes, allowance_s: float) -> Report:
        """Let the decoder hear some audio.

        Args:
            wish: whether to begin or to end an utterance.
            audio: s16le, mono, 16 kHz; what the decoder has not heard yet.
            allowance_s: longest time it may take, besides what a request given up before may still take.

        Raises:
            EngineCrashed: the process died or refused; it is no longer alive.
            EngineTimeout: no answer in time; the process was killed.
        """
        if not self.alive or self._transport is None:
            raise EngineCrashed("the decoder process has ended")
        self._number += 1
        self._owed_s += allowance_s
        self._answer = asyncio.get_running_loop().create_future()
        requests = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))
        requests.write(message(self._number, wish, audio))
        return await self._settled(self._owed_s)

    def kill(self) -> None:
        """End the process at once. Safe at any time and more than once."""
        self._killed = True
        if self._transport is not None and self._transport.get_returncode() is None:
            # Not by the transport: that would also collect the exit status, under the feet of the loop's watcher.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._transport.get_pid(), signal.SIGKILL)

    async def ended(self) -> None:
        """Wait until there is no process, which is also the case before it was started."""
        await self._ended.wait()

    async def _settled(self, timeout_s: float) -> Report:
        assert self._answer is not None
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answer
        except TimeoutError:
            self.kill()
            raise EngineTimeout(f"the decoder did not answer within {timeout_s:.1f} s") from None
        finally:
            self._answer = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the handle of the process that has just been started."""
        self._transport = cast(asyncio.SubprocessTransport, transport)
        if self._killed:
            self.kill()

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        """Collect an answer and settle the request it belongs to."""
        self._incoming += cast(bytes, data)
        while len(self._incoming) >= HEADER.size:
            number, told, length = HEADER.unpack_from(self._incoming)
            if length > MAX_BODY_BYTES:
                self._fail("a decoder process is out of step")
                return
            end = HEADER.size + length
            if len(self._incoming) < end:
                return
            body = bytes(self._incoming[HEADER.size : end])
            del self._incoming[:end]
            self._heard(number, told, body)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Treat a closed pipe as a death: nothing can be asked any more."""
        self._fail("the decoder process ended")

    def process_exited(self) -> None:
        """Note the death and tell whoever waits."""
        self._ended.set()
        self._fail("the decoder process ended")
        if self._transport is not None:
            self._transport.close()

    def _heard(self, number: int, told: int, body: bytes) -> None:
        if number != self._number:
            return
        self._owed_s = 0.0
        if told != Told.HEARD:
            self._fail("the decoder refused the audio")
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(Report.from_body(body) if body else Report("", []))

    def _fail(self, reason: str) -> None:
        if not self._killed:
            _log.warning("decoder process %s: %s", self.pid, reason)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EngineCrashed(reason))
        self.kill()
