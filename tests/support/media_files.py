"""Recordings in every format that is read, made by FFmpeg's own encoders (through PyAV)."""

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from qwen3_asr_server.domain import SAMPLE_RATE, Samples
from qwen3_asr_server.runtime.media import MediaLimits, MediaReader, open_media


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to store audio."""

    name: str
    container: str
    codec: str
    rate: int
    channels: int = 1
    video: bool = False
    exact: bool = False
    """Nothing is lost in it."""


KINDS = (
    Kind("wav", "wav", "pcm_s16le", 16_000, exact=True),
    Kind("wav-stereo-44k", "wav", "pcm_s16le", 44_100, channels=2),
    Kind("wav-24bit", "wav", "pcm_s24le", 48_000),
    Kind("wav-mulaw", "wav", "pcm_mulaw", 8_000),
    Kind("w64", "w64", "pcm_s16le", 16_000, exact=True),
    Kind("aiff", "aiff", "pcm_s16be", 16_000, exact=True),
    Kind("caf", "caf", "pcm_s16be", 16_000, exact=True),
    Kind("au", "au", "pcm_s16be", 16_000, exact=True),
    Kind("mp3", "mp3", "libmp3lame", 44_100, channels=2),
    Kind("mp3-8k", "mp3", "libmp3lame", 8_000),
    Kind("m4a", "ipod", "aac", 44_100, channels=2),
    Kind("m4a-surround", "ipod", "aac", 48_000, channels=8),
    Kind("m4a-alac", "ipod", "alac", 16_000),
    Kind("aac", "adts", "aac", 44_100),
    Kind("flac", "flac", "flac", 48_000, channels=2),
    Kind("ogg-opus", "ogg", "libopus", 48_000),
    Kind("ogg-vorbis", "ogg", "vorbis", 44_100, channels=2),
    Kind("ogg-flac", "ogg", "flac", 16_000, exact=True),
    Kind("webm", "webm", "libopus", 48_000),
    Kind("amr", "amr", "libopencore_amrnb", 8_000),
    Kind("3gp-amr", "3gp", "libopencore_amrnb", 8_000),
    Kind("wma", "asf", "wmav2", 44_100),
    Kind("mp4-video", "mp4", "aac", 48_000, channels=2, video=True),
    Kind("mkv-video", "matroska", "libopus", 48_000, channels=2, video=True),
    Kind("avi-video", "avi", "libmp3lame", 44_100, video=True),
    Kind("mpegts-video", "mpegts", "aac", 48_000, video=True),
    Kind("flv-video", "flv", "aac", 44_100, video=True),
)

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_FRAME = 1_000


def write_media(path: Path, kind: Kind, samples: Samples, *, leap_at_s: float = 0, leap_s: float = 0) -> Path:
    """Write a recording.

    Args:
        path: of the new file.
        kind: how.
        samples: float32 [n, channels] in [-1, 1], at the kind's rate.
        leap_at_s: where the file's clock leaps.
        leap_s: by how much; the audio behind lies so much later.
    """
    with av.open(str(path), "w", format=kind.container) as container:
        options = {"strict": "experimental"} if kind.codec == "vorbis" else None
        stream = container.add_stream(kind.codec, rate=kind.rate, options=options, layout=_LAYOUTS[kind.channels])
        stream.bit_rate = 12_200 if "amr" in kind.codec else 64_000 * kind.channels
        if kind.video:
            _write_video(container, len(samples) / kind.rate)
        sample_format = stream.codec_context.format or av.AudioFormat("s16")
        resampler = av.AudioResampler(sample_format, _LAYOUTS[kind.channels], kind.rate)
        for at in range(0, len(samples), _FRAME):
            frame = av.AudioFrame.from_ndarray(
                _s16(samples[at : at + _FRAME]).reshape(1, -1), format="s16", layout=_LAYOUTS[kind.channels]
            )
            frame.sample_rate, frame.time_base = kind.rate, Fraction(1, kind.rate)
            frame.pts = at + round(leap_s * kind.rate) * (at >= leap_at_s * kind.rate)
            for fitting in resampler.resample(frame):
                container.mux(stream.encode(fitting))
        container.mux(stream.encode(None))
    return path


def sparse_wav(path: Path, rate: int, length_s: int) -> Path:
    """Write a WAV file of silence that takes no room on the disk."""
    size = length_s * rate * 2
    head = struct.pack(
        "<4sI8sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVEfmt ", 16, 1, 1, rate, rate * 2, 2, 16, b"data", size
    )
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return path


async def read_media(path: Path, limits: MediaLimits, *, split: bool = False) -> tuple[Samples, MediaReader]:
    """Return all audio of a file, float32 [channels, n], and its reader after use."""
    async with open_media(path, limits, split_channels=split) as media:
        blocks = [block async for block in media.blocks()]
        return np.concatenate([np.empty((media.channels, 0), np.float32), *blocks], axis=1), media


def delay_and_likeness(expected: Samples, heard: Samples) -> tuple[float, float]:
    """Return by how many seconds `heard` lags, and the correlation there."""
    size = 2 ** int(np.ceil(np.log2(len(expected) + len(heard))))
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(expected, size)), size)
    at = int(np.argmax(product))
    likeness = product[at] / (np.linalg.norm(expected) * np.linalg.norm(heard))
    return (at - size if at > size // 2 else at) / SAMPLE_RATE, float(likeness)


def _s16(samples: Samples) -> npt.NDArray[np.int16]:
    return np.clip(np.rint(samples * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)


def _write_video(container: av.container.OutputContainer, length_s: float) -> None:
    stream = container.add_stream("mpeg4" if container.format.name != "flv" else "flv1", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for number in range(max(1, round(length_s * 10))):
        picture = np.full((48, 64, 3), number % 256, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
