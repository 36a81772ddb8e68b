"""The unmodified v1 SDK, with everything it receives written down.

Knows the SDK and audio packets; needs neither the server nor any particular SDK version.
"""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dashscope.audio.qwen_omni import MultiModality, OmniRealtimeCallback, OmniRealtimeConversation

from support.invariants import COMPLETED, FAILED, Frame

MODEL = "qwen3-asr-flash-realtime"
PACKET_BYTES = 3200
"""100 ms at 16 kHz: what the vendor's samples send."""
WAIT_S = 20.0
TEXT_ONLY = [MultiModality.TEXT]


class Recorder(OmniRealtimeCallback):  # type: ignore[misc]
    """Keep every event, and let the test wait for one."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.times: list[float] = []
        """When each frame came, in seconds on the monotonic clock."""
        self.closed: tuple[int | None, str | None] | None = None
        self._changed = threading.Condition()

    def on_event(self, message: Any) -> None:
        with self._changed:
            self.frames.append(message)
            self.times.append(time.monotonic())
            self._changed.notify_all()

    def on_close(self, close_status_code: int | None, close_msg: str | None) -> None:
        with self._changed:
            self.closed = close_status_code, close_msg
            self._changed.notify_all()

    def wait_for(self, kind: str, count: int = 1) -> Frame:
        """Wait until the `count`-th event of a type is there and return it."""
        self._wait(lambda: len(self.all_of(kind)) >= count, f"{count} × {kind}")
        return self.all_of(kind)[count - 1]

    def stays_open(self, seconds: float) -> bool:
        """Say whether the connection outlives the next seconds."""
        with self._changed:
            return not self._changed.wait_for(lambda: self.closed is not None, seconds)

    def all_of(self, kind: str) -> list[Frame]:
        return [frame for frame in self.frames if frame["type"] == kind]

    @property
    def transcripts(self) -> list[str]:
        """All finals so far; an utterance that failed is a failure of the test."""
        assert not self.all_of(FAILED), self.all_of(FAILED)
        return [frame["transcript"] for frame in self.all_of(COMPLETED)]

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, WAIT_S):
                raise AssertionError(f"waited {WAIT_S} s for {what}; got {[frame['type'] for frame in self.frames]}")


@contextmanager
def conversation(url: str, api_key: str = "sk-test") -> Iterator[tuple[OmniRealtimeConversation, Recorder]]:
    """Connect, and close at the end as a user would."""
    recorder = Recorder()
    client = OmniRealtimeConversation(model=MODEL, url=url, callback=recorder, api_key=api_key)
    client.connect()
    try:
        yield client, recorder
    finally:
        # The SDK's own thread notices only with its next poll, up to ten seconds later: nothing to wait for.
        client.close()


def send(client: OmniRealtimeConversation, pcm: bytes, packet_bytes: int = PACKET_BYTES, *, live: bool = False) -> None:
    """Append audio in packets, as fast as it goes or, `live`, one every 100 ms."""
    started = time.monotonic()
    for number, start in enumerate(range(0, len(pcm), packet_bytes)):
        if live:
            time.sleep(max(0.0, started + number * 0.1 - time.monotonic()))
        client.append_audio(base64.b64encode(pcm[start : start + packet_bytes]).decode())
