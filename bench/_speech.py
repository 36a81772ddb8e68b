"""Real speech as WebSocket frames that are ready to be sent.

Joins the human prompts of `tests/data/speech` into one loop with pauses between them and encodes each 100 ms
of it once, so that a load client spends its time on sending. Used by the benchmarks; knows no server.
"""

import base64
import json
import struct
from pathlib import Path

import av
import numpy as np

RATE = 16_000
PACKET_MS = 100
PACKET_SAMPLES = RATE * PACKET_MS // 1000
PAUSE_S = 1.2
_DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "speech"
_MASK = bytes.fromhex("5aa53cc3")


class SpeechLoop:
    """All prompts one after the other, endlessly, as masked `input_audio_buffer.append` frames."""

    def __init__(self) -> None:
        samples = _joined_prompts()
        self.packets = [samples[at : at + PACKET_SAMPLES] for at in range(0, len(samples), PACKET_SAMPLES)]
        self._frames = [masked_frame(_append(number, packet)) for number, packet in enumerate(self.packets)]

    @property
    def seconds(self) -> float:
        """Length of the loop."""
        return len(self.packets) * PACKET_MS / 1000

    def frames(self, offset: int, count: int) -> list[bytes]:
        """Return `count` frames from packet `offset` on, around the end if need be."""
        return [self._frames[(offset + index) % len(self._frames)] for index in range(count)]


def masked_frame(text: str) -> bytes:
    """Return a client's text frame. The mask is always the same: a server undoes it like any other."""
    payload = np.frombuffer(text.encode(), np.uint8)
    mask = np.resize(np.frombuffer(_MASK, np.uint8), len(payload))
    if len(payload) < 126:
        header = struct.pack("!BB", 0x81, 0x80 | len(payload))
    elif len(payload) < 65_536:
        header = struct.pack("!BBH", 0x81, 0x80 | 126, len(payload))
    else:
        header = struct.pack("!BBQ", 0x81, 0x80 | 127, len(payload))
    return header + _MASK + (payload ^ mask).tobytes()


def _append(number: int, packet: np.ndarray) -> str:
    event = {
        "event_id": f"event_{number:021}",
        "type": "input_audio_buffer.append",
        "audio": base64.b64encode(packet.astype("<i2").tobytes()).decode(),
    }
    return json.dumps(event)


def _joined_prompts() -> np.ndarray:
    """Return int16 [n], a whole number of packets."""
    pause = np.zeros(round(PAUSE_S * RATE), np.int16)
    parts = []
    for line in (_DATA / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        with av.open(str(_DATA / json.loads(line)["file"])) as container:
            parts += [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
        parts.append(pause)
    samples = np.concatenate(parts)
    return np.pad(samples, (0, -len(samples) % PACKET_SAMPLES))
