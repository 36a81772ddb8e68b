"""Many paced realtime sessions from one light client.

Writes frames that were encoded beforehand straight to the transports and reads only what it needs, so that one
core drives several hundred sessions; how late it was itself is part of every result. Used by the benchmarks.
"""

import asyncio
import base64
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from _speech import PACKET_MS, PACKET_SAMPLES, masked_frame

PATH = "/api-ws/v1/realtime?model=qwen3-asr-flash-realtime"
MIN_SPEECH_SAMPLES = 1024
"""An utterance opens with the second speech frame of 512 samples."""
PERIOD_S = PACKET_MS / 1000
OPEN_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 60

STARTED = "input_audio_buffer.speech_started"
STOPPED = "input_audio_buffer.speech_stopped"
COMPLETED = "conversation.item.input_audio_transcription.completed"
PARTIAL = "conversation.item.input_audio_transcription.text"


@dataclass(slots=True)
class Transcript:
    """What one session went through."""

    counts: Counter[str] = field(default_factory=Counter)
    sent_at: list[float] = field(default_factory=list)
    """When each packet was written, on `time.perf_counter`."""
    speech_lags: list[float] = field(default_factory=list)
    """From the packet that decided `speech_started` to that event's arrival, in seconds."""
    dropped: bool = False
    """The server ended the connection before `session.finished`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Utterances started, stopped and completed."""
        return self.counts[STARTED], self.counts[STOPPED], self.counts[COMPLETED]


class Session(asyncio.Protocol):
    """One connection. The WebSocket of a client that trusts its server: text frames, pings, nothing else."""

    path = PATH
    last_event = "session.finished"
    """What the server says before a connection may end."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self.transport: asyncio.Transport
        self._buffer = b""
        self._upgraded = False
        loop = asyncio.get_running_loop()
        self._seen = {name: loop.create_future() for name in ("session.created", "session.updated", self.last_event)}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET {self.path} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._buffer += data
        if not self._upgraded:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                raise RuntimeError(f"no upgrade: {head.splitlines()[0].decode(errors='replace')}")
            self._upgraded = True
            self._buffer = rest
        while (frame := self._next_frame()) is not None:
            opcode, payload = frame
            if opcode == 1:
                self.receive(json.loads(payload), now)
            elif opcode == 9:
                self.transport.write(bytes([0x8A, 0x80 | len(payload)]) + bytes(4) + payload)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transcript.dropped = not self._seen[self.last_event].done()
        for future in self._seen.values():
            if not future.done():
                future.set_exception(ConnectionError("the server closed the connection"))
                future.exception()

    async def open(self, silence_ms: int) -> None:
        """Wait for the greeting and configure."""
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await self._seen["session.created"]
            turn_detection = {"type": "server_vad", "silence_duration_ms": silence_ms}
            update = {"type": "session.update", "session": {"turn_detection": turn_detection}}
            self.say(update)
            await self._seen["session.updated"]

    async def finish(self) -> Transcript:
        """End in order and return what happened."""
        self.say({"type": "session.finish"})
        try:
            async with asyncio.timeout(FINISH_TIMEOUT_S):
                await self._seen[self.last_event]
        except (ConnectionError, TimeoutError):
            self.transcript.dropped = True
        self.transport.abort()
        return self.transcript

    def say(self, event: dict) -> None:
        """Send an event."""
        if not self.transport.is_closing():
            self.transport.write(masked_frame(json.dumps(event)))

    def append(self, frame: bytes) -> None:
        """Send one packet."""
        self.transcript.sent_at.append(time.perf_counter())
        if not self.transport.is_closing():
            self.transport.write(frame)

    def receive(self, event: dict, now: float) -> None:
        """Take an event in."""
        kind = event["type"]
        self.transcript.counts[kind] += 1
        if kind == STARTED:
            decided = event["audio_start_ms"] * 16 + MIN_SPEECH_SAMPLES - 1
            sent = self.transcript.sent_at
            packet = min(decided // PACKET_SAMPLES, len(sent) - 1)
            self.transcript.speech_lags.append(now - sent[packet])
        elif kind in self._seen and not self._seen[kind].done():
            self._seen[kind].set_result(None)

    def _next_frame(self) -> tuple[int, bytes] | None:
        data = self._buffer
        if len(data) < 2:
            return None
        length, start = data[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start])
        if len(data) < start + length:
            return None
        self._buffer = data[start + length :]
        return data[0] & 0x0F, data[start : start + length]


@dataclass(slots=True)
class LoadResult:
    """A run of many sessions."""

    transcripts: list[Transcript]
    lateness_s: list[float]
    """How much later than planned each packet was written."""
    cpu_share: float
    """Share of one core that the client itself used while it sent."""


async def run_load(
    port: int, streams: list[list[bytes]], silence_ms: int, on_steady: Callable[[], None], on_sent: Callable[[], None]
) -> LoadResult:
    """Play each stream in a session of its own, all at once, one packet each 100 ms.

    Args:
        port: where the server listens, on loopback.
        streams: frames of each session, equally many.
        silence_ms: endpointing to ask for.
        on_steady: called when all sessions have sent for two seconds.
        on_sent: called after the last packet, before the sessions finish.
    """
    sessions = await _connect(port, len(streams), silence_ms)
    lateness_s = []
    begin = time.perf_counter() + 0.05
    cpu_begin = time.process_time()
    for number in range(len(streams[0])):
        for index, (session, stream) in enumerate(zip(sessions, streams, strict=True)):
            due = begin + (number + index / len(sessions)) * PERIOD_S
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            session.append(stream[number])
            lateness_s.append(session.transcript.sent_at[-1] - due)
            if index % 16 == 15:
                await asyncio.sleep(0)
        if number == round(2 / PERIOD_S):
            on_steady()
    cpu_share = (time.process_time() - cpu_begin) / (time.perf_counter() - begin)
    on_sent()
    transcripts = await asyncio.gather(*(session.finish() for session in sessions))
    return LoadResult(list(transcripts), lateness_s, cpu_share)


async def run_alone(port: int, stream: list[bytes], silence_ms: int) -> Transcript:
    """Play one stream in one session without pacing: segmentation counts audio time, not the clock's."""
    [session] = await _connect(port, 1, silence_ms)
    for frame in stream:
        session.append(frame)
    return await session.finish()


async def _connect(port: int, count: int, silence_ms: int) -> list[Session]:
    loop = asyncio.get_running_loop()
    sessions = []
    for _ in range(count):
        _, session = await loop.create_connection(Session, "127.0.0.1", port)
        sessions.append(session)
    await asyncio.gather(*(session.open(silence_ms) for session in sessions))
    return sessions
