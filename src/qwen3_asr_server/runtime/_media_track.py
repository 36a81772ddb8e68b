"""One audio track of a media file to float32 at 16 kHz, on the file's clock, a second at a time.

Only containers and codecs on a list are read, and broken packets are passed over. Resampled and mixed down as the audio
of live sessions is (`audio.resample`, `audio.pcm`), so that a recording gives the same text through every door.

It reads standard input and knows nothing of limits on the process. Used by `_media_worker` only, never in the server.
"""

import os
import struct
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError

from qwen3_asr_server.audio.resample import Resampler
from qwen3_asr_server.runtime._media_wire import Fault, MediaKind, Opened, Task

Planes = npt.NDArray[np.float32]
"""Audio: float32 [channels, n], in [-1, 1]."""

FORMATS: Final = "aac,ac3,aiff,amr,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,w64,wav"
"""The containers that are opened. No playlist is among them: those name other files."""

CODECS: Final = (
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,eac3,flac,g722,gsm,gsm_ms,libopus,mp1,mp1float,"
    "mp2,mp2float,mp3,mp3float,opus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,"
    "pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,speex,vorbis,wmav1,wmav2"
)
"""The decoders that are used. No video decoder is among them, not even to look what a file holds."""

EXACT: Final = {"aiff", "au", "caf", "flac", "matroska", "mov", "w64", "wav"}
"""Containers whose header says how long they are. Others are judged by their first bytes."""

LOWEST_BITRATE: Final = 100
"""Bits a second, half of what any codec needs for silence. A file too small for the length it claims is disbelieved."""

GAP_S: Final = 0.25
"""A packet that comes this much too late leaves a gap, which becomes silence; less is jitter."""

LONGEST_GAP_S: Final = 600
"""A longer gap is a clock that was set, as where two recordings were joined."""

LOWEST_RATE, HIGHEST_RATE = 4_000, 192_000

_WAV_CHUNKS: Final = 100
"""So many stand before the sound at most."""

_ENDLESS_BYTES: Final = 0x7FFF_0000
"""A larger size in a WAV header stands for one that was not known."""

_PLANES: Final = 8
"""PyAV looks for a frame's planes up to the first empty place, and behind the eighth there is none: it would read
memory that is not the frame's. Frames with so many go through a format that has one plane."""

PATIENCE_PACKETS: Final = 1_000
"""So many packets without any sound: this is no audio."""


class FaultError(Exception):
    """The file is given up."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class Track:
    """The audio track of the file that a player would choose.

    Raises:
        FaultError: there is none, or none that can be decoded.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._broken = False
        self._heard_s = 0.0
        self._container = _open()
        self._start_s = (self._container.start_time or 0) / 1_000_000
        self._stream = self._chosen()
        self._packets = self._container.demux(self._stream)
        self._first = self._first_frames()
        channels = self._first[0].layout.nb_channels if task.split_channels else 1
        if not 0 < channels <= task.max_channels:
            raise FaultError(Fault.CHANNELS)
        self.opened = Opened(channels, self._declared_s(), self._kind())
        self._demand_room(self.opened.duration_s or 0)

    @property
    def heard_s(self) -> float:
        """Audio decoded so far, silence in gaps included."""
        return self._heard_s

    @property
    def cut_short(self) -> bool:
        """Whether the file ended before its header says, or in the midst of something."""
        if self._broken or _missing_of_wav_s() > GAP_S:
            return True
        declared_s = self.opened.duration_s if EXACT & set(self._container.format.name.split(",")) else None
        return declared_s is not None and self._heard_s < 0.98 * declared_s - 1

    def blocks(self) -> Iterator[Planes]:
        """Yield float32 [channels, n], 16 kHz, about a second each.

        Raises:
            FaultError: there is more audio than allowed, or none that can be heard.
        """
        mixer = Mixer(self.opened.channels)
        for frame in self._frames():
            rate = frame.sample_rate
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise FaultError(Fault.RATE)
            for planes in chain(_silence(self._gap_s(frame), rate), [planes_of(frame)]):
                yield from mixer.take(planes, rate)
                self._heard_s += planes.shape[1] / rate
                self._demand_room(self._heard_s)
        yield from mixer.end()

    def _demand_room(self, audio_s: float) -> None:
        if audio_s > self._task.max_audio_s + 1:
            raise FaultError(Fault.TOO_LONG)

    def _gap_s(self, frame: Any) -> float:
        """Return how much silence belongs before a frame, in seconds."""
        if frame.time is None:
            return 0.0
        ahead_s: float = frame.time - self._start_s - self._heard_s
        if abs(ahead_s) <= (GAP_S if self._heard_s else 0):
            return 0.0
        if 0 < ahead_s <= LONGEST_GAP_S:
            return ahead_s
        self._start_s += ahead_s
        return 0.0

    def _chosen(self) -> Any:
        stream = self._container.streams.best("audio")
        if stream is None:
            raise FaultError(Fault.NO_AUDIO)
        if stream.codec_context is None or stream.codec_context.name not in CODECS.split(","):
            raise FaultError(Fault.UNKNOWN_CODEC)
        stream.codec_context.thread_count = 1
        for other in self._container.streams:
            if other is not stream and hasattr(other, "discard"):
                other.discard = type(other.discard).all
        return stream

    def _kind(self) -> MediaKind:
        first = self._first[0]
        container, codec = self._container.format.name, self._stream.codec_context.name
        return MediaKind(container, codec, first.sample_rate, first.layout.nb_channels)

    def _declared_s(self) -> float | None:
        """Return the track's end on the file's clock, where the file says it and could be that long."""
        stream, container = self._stream, self._container
        if stream.duration is not None:
            start_s = float((stream.start_time or 0) * stream.time_base) - self._start_s
            declared_s = max(0.0, start_s) + float(stream.duration * stream.time_base)
        elif container.duration is not None:
            declared_s = container.duration / 1_000_000
        else:
            return None
        longest_s = os.fstat(0).st_size * 8 / LOWEST_BITRATE
        return declared_s if 0 < declared_s <= longest_s else None

    def _first_frames(self) -> list[Any]:
        """Return the frames of the first packet that has any."""
        for _ in range(PATIENCE_PACKETS):
            if (packet := self._next_packet()) is None:
                break
            if frames := self._decoded(packet):
                return frames
        raise FaultError(Fault.DAMAGED)

    def _frames(self) -> Iterator[Any]:
        yield from self._first
        self._first = []
        while (packet := self._next_packet()) is not None:
            yield from self._decoded(packet)

    def _next_packet(self) -> Any:
        """Return the next packet, an empty one at the end of the file, and then None. A broken file ends."""
        try:
            return next(self._packets, None)
        except MemoryError:
            raise
        except FFmpegError:
            self._broken = True
            return None

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return list(packet.decode())
        except MemoryError:
            raise
        except FFmpegError:
            return []


class Mixer:
    """Frames of any rate and any number of channels to blocks at 16 kHz.

    Args:
        channels: of the blocks; 1 mixes all channels down by their mean.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._rate = 0
        self._resamplers: list[Any] = []
        self._held: list[Planes] = []
        self._held_samples = 0

    def take(self, planes: Planes, rate: int) -> Iterator[Planes]:
        """Add float32 [any channels, n] at a rate, and yield what is ready."""
        if rate != self._rate:
            yield from self.end()
            self._rate, self._resamplers = rate, [Resampler(rate) for _ in range(self._channels)]
        self._held.append(self._fitted(planes))
        self._held_samples += planes.shape[1]
        if self._held_samples >= rate:
            yield from self._flushed(last=False)

    def end(self) -> Iterator[Planes]:
        """Yield what has been held back."""
        if self._resamplers:
            yield from self._flushed(last=True)

    def _flushed(self, *, last: bool) -> Iterator[Planes]:
        planes = np.concatenate([np.empty((self._channels, 0), np.float32), *self._held], axis=1)
        self._held, self._held_samples = [], 0
        parts = [sampler.process(plane) for sampler, plane in zip(self._resamplers, planes, strict=True)]
        if last:
            parts = [
                np.concatenate([part, sampler.flush()]) for part, sampler in zip(parts, self._resamplers, strict=True)
            ]
        block = np.stack(parts)
        if block.shape[1]:
            yield block

    def _fitted(self, planes: Planes) -> Planes:
        """Return as many channels as the track began with, should the file change its mind."""
        if self._channels == 1:
            mono: Planes = planes.mean(axis=0, keepdims=True, dtype=np.float32)
            return mono
        if len(planes) >= self._channels:
            return planes[: self._channels]
        repeated: Planes = planes[np.arange(self._channels) % len(planes)]
        return repeated


def _silence(length_s: float, rate: int) -> Iterator[Planes]:
    """Yield silence of one channel, at most a second at a time."""
    left = round(length_s * rate)
    while left > 0:
        yield np.zeros((1, min(left, rate)), np.float32)
        left -= rate


def planes_of(frame: Any) -> Planes:
    """Return a decoded frame as float32 [channels, n] in [-1, 1], finite."""
    if frame.format.is_planar and frame.layout.nb_channels >= _PLANES:
        (frame,) = av.AudioResampler(format="flt").resample(frame)
    values: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype.kind == "f":
        sane: Planes = np.clip(np.nan_to_num(values, nan=0.0), -1, 1).astype(np.float32)
        return sane
    middle, most = (128, 128) if values.dtype.kind == "u" else (0, np.iinfo(values.dtype).max + 1)
    planes: Planes = (values.astype(np.float32) - np.float32(middle)) / np.float32(most)
    return planes


def _missing_of_wav_s() -> float:
    """Return how much of a WAV file is missing at its end by its own account, which FFmpeg keeps to itself, in seconds.

    Where the length was not known when the header was written, and in other files, nothing is.
    """
    riff, _, form = struct.unpack("<4sI4s", os.pread(0, 12, 0).ljust(12, b"\0"))
    if (riff, form) != (b"RIFF", b"WAVE"):
        return 0.0
    at, bytes_per_s = 12, 0
    for _ in range(_WAV_CHUNKS):
        name, size = struct.unpack("<4sI", os.pread(0, 8, at).ljust(8, b"\0"))
        at += 8
        if name == b"fmt ":
            (bytes_per_s,) = struct.unpack("<I", os.pread(0, 4, at + 8).ljust(4, b"\0"))
        if name == b"data":
            known = bool(bytes_per_s) and size < _ENDLESS_BYTES
            return max(0, at + size - os.fstat(0).st_size) / bytes_per_s if known else 0.0
        at += size + size % 2
    return 0.0


def _open() -> Any:
    options = {"fd": "0", "protocol_whitelist": "fd", "format_whitelist": FORMATS, "codec_whitelist": CODECS}
    try:
        return av.open("fd:", options=options, metadata_errors="replace")
    except MemoryError:
        raise
    except FFmpegError:
        raise FaultError(Fault.UNKNOWN_FORMAT) from None
