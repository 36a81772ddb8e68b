"""Encoded audio made by FFmpeg (through PyAV), so that our own readers are tested against somebody else's writer."""

from collections.abc import Iterable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar, get_args

import av
import numpy as np
import soxr

from qwen3_asr_server.domain import SAMPLE_RATE, Samples

Subtype = Literal["u8", "s16le", "s24le", "s32le", "f32le", "f64le", "alaw", "mulaw"]
SUBTYPES: tuple[Subtype, ...] = get_args(Subtype)

Framed = Literal["mp3", "aac", "amr"]

Sliced = TypeVar("Sliced", bytes, Samples)

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def tone(frequency: float, seconds: float, rate: int = SAMPLE_RATE, amplitude: float = 0.5) -> Samples:
    """Return a sine, float32 [seconds * rate]."""
    at = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * at)).astype(np.float32)


def chirp(seconds: float, rate: int = SAMPLE_RATE, low: float = 200, high: float = 3000) -> Samples:
    """Return a sweep, float32 [seconds * rate], which matches itself at one delay only."""
    at = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (low + (high - low) * at / (2 * seconds)) * at)).astype(np.float32)


def cut(data: Sliced, cuts: Iterable[int]) -> list[Sliced]:
    """Return the pieces of `data` between the places in `cuts` (any order, repeats and excess allowed)."""
    places = [0, *sorted(min(place, len(data)) for place in cuts), len(data)]
    return [data[start:upto] for start, upto in pairwise(places)]


def opus_packets(samples: Samples, rate: int = SAMPLE_RATE, frame_ms: int = 20, channels: int = 1) -> list[bytes]:
    """Return bare opus packets; the last one pads with silence.

    Args:
        samples: float32 [n] in [-1, 1], repeated on every channel.
        rate: of the samples, one of 8000, 12000, 16000, 24000, 48000.
        frame_ms: 10, 20, 40 or 60.
        channels: 1 or 2.
    """
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = rate, _LAYOUTS[channels], "s16"
    encoder.options = {"frame_duration": str(frame_ms), "application": "voip"}
    packets: list[bytes] = []
    frame_samples = rate * frame_ms // 1000
    for at in range(0, len(samples), frame_samples):
        piece = samples[at : at + frame_samples]
        frame = _frame(np.pad(piece, (0, frame_samples - len(piece))), rate, channels, "s16")
        frame.pts = at
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets + [bytes(packet) for packet in encoder.encode(None)]


def ogg_opus(samples: Samples, rate: int = SAMPLE_RATE, channels: int = 1, page_ms: int = 1000) -> bytes:
    """Return an Ogg Opus file whose decoded length is that of the samples.

    Args:
        samples: float32 [n] in [-1, 1], repeated on every channel.
        rate: of the samples, one of 8000, 12000, 16000, 24000, 48000.
        channels: 1 or 2.
        page_ms: longest audio in a page.
    """
    return _container("ogg", "libopus", "s16", samples, rate, channels, {"page_duration": str(page_ms * 1000)})


def framed(
    codec: Framed,
    samples: Samples,
    rate: int = SAMPLE_RATE,
    channels: int = 1,
    bit_rate: int = 64_000,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    """Return a file whose frames stand one behind the other; MP3 has a tag and an index in front.

    Args:
        codec: of the frames.
        samples: float32 [n] in [-1, 1], repeated on every channel; or [n, channels].
        rate: Hz; 8000 for AMR.
        channels: 1, 2, 6 or 8; 1 for AMR.
        bit_rate: bits a second; AMR has some of its own, 4750 to 12200.
        codec_options: of FFmpeg's encoder.
    """
    container, encoder = {"mp3": ("mp3", "libmp3lame"), "aac": ("adts", "aac"), "amr": ("amr", "libopencore_amrnb")}[
        codec
    ]
    return _container(container, encoder, "s16", samples, rate, channels, None, bit_rate, codec_options)


def wav_bytes(samples: Samples, rate: int = SAMPLE_RATE, channels: int = 1, subtype: Subtype = "s16le") -> bytes:
    """Return a WAV file as FFmpeg writes it: with a LIST chunk, and extensible where the format needs it.

    Args:
        samples: float32 [n] in [-1, 1], repeated on every channel; or [n, channels].
        rate: Hz.
        channels: 1, 2 or 6.
        subtype: how a sample is stored.
    """
    frame_format = {"u8": "u8", "s24le": "s32", "s32le": "s32", "f32le": "flt", "f64le": "dbl"}.get(subtype, "s16")
    return _container("wav", f"pcm_{subtype}", frame_format, samples, rate, channels)


def load_wav(path: Path) -> Samples:
    """Return a WAV file of any kind as float32 [n], mono, 16 kHz."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("fltp", "mono", stream.rate)
        frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
        mono = np.concatenate([np.empty(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)])
        return soxr.resample(mono, stream.rate, SAMPLE_RATE) if stream.rate != SAMPLE_RATE else mono


def _container(
    kind: str,
    codec: str,
    frame_format: str,
    samples: Samples,
    rate: int,
    channels: int,
    options: dict[str, str] | None = None,
    bit_rate: int | None = None,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    file = BytesIO()
    with av.open(file, "w", format=kind, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout=_LAYOUTS[channels], options=codec_options)
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        if len(samples):
            container.mux(stream.encode(_frame(samples, rate, channels, frame_format)))
        container.mux(stream.encode(None))
    return file.getvalue()


def _frame(samples: Samples, rate: int, channels: int, frame_format: str) -> av.AudioFrame:
    interleaved = samples.reshape(len(samples), -1).repeat(channels // samples.reshape(len(samples), -1).shape[1], 1)
    match frame_format:
        case "u8":
            packed = np.clip(np.rint(interleaved * 128) + 128, 0, 255).astype(np.uint8)
        case "s16":
            packed = np.clip(np.rint(interleaved * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)
        case "s32":
            packed = np.clip(np.rint(interleaved * 2.0**31), -(2**31), 2**31 - 1).astype(np.int32)
        case "flt":
            packed = interleaved.astype(np.float32)
        case _:
            packed = interleaved.astype(np.float64)
    frame = av.AudioFrame.from_ndarray(packed.reshape(1, -1), format=frame_format, layout=_LAYOUTS[channels])
    frame.sample_rate = rate
    frame.pts = 0
    return frame
