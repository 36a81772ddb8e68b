import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.audio.ogg import OggPage, OggReader
from qwen3_asr_server.audio.ogg_audio import OggAudio
from qwen3_asr_server.audio.speex import SpeexPages
from qwen3_asr_server.errors import InvalidAudio
from support.audio_files import chirp, cut, load_wav, ogg_opus

PATH = Path(__file__).resolve().parents[2] / "data" / "formats" / "en-00.spx"
FILE = PATH.read_bytes()


def head(rate: int = 16_000, mode: int = 1, channels: int = 1, frames: int = 1, extra_headers: int = 0) -> bytes:
    numbers = (1, 80, rate, mode, 4, channels, -1, 320, 0, frames, extra_headers, 0, 0)
    return struct.pack("<8s20s13i", b"Speex   ", b"1.2", *numbers)


def page(*packets: bytes) -> OggPage:
    return OggPage(packets, 0, first=False, last=False)


PACKETS = [packet for page in OggReader().feed(FILE) for packet in page.packets][2:]


def test_it_sounds_as_ffmpeg_reads_the_file() -> None:
    stream = OggAudio(max_append_s=1200)
    heard, expected = np.concatenate([stream.decode(FILE), stream.flush()]), load_wav(PATH)
    assert heard.dtype == np.float32
    assert len(heard) == len(expected)
    assert np.corrcoef(heard, expected)[0, 1] > 0.999
    assert stream.ended


@pytest.mark.parametrize("step", [1, 500, 100_000])
def test_it_may_follow_opus_and_opus_may_follow(step: int) -> None:
    stream, data = OggAudio(max_append_s=1200), ogg_opus(chirp(0.5)) + FILE + ogg_opus(chirp(0.5))
    heard = np.concatenate([*map(stream.decode, cut(data, range(0, len(data), step))), stream.flush()])
    assert len(heard) == 8_000 + len(load_wav(PATH)) + 8_000
    assert np.corrcoef(heard[8_000:-8_000], load_wav(PATH))[0, 1] > 0.999


@pytest.mark.parametrize("extra_headers", [0, 2])
def test_headers_are_no_audio(extra_headers: int) -> None:
    pages = SpeexPages(head(extra_headers=extra_headers))
    assert len(pages.decode(page(b"comments", *[b"extra"] * extra_headers, b"", PACKETS[0]))) == 320
    assert len(pages.decode(page(PACKETS[1], PACKETS[2]))) == 640


@pytest.mark.parametrize(
    "damaged",
    [
        *(b"Speex   ", b"speex   " + head()[8:], head()[:79]),
        *(head(rate=0), head(rate=96_000), head(mode=3), head(mode=-1), head(channels=0), head(channels=3)),
        *(head(frames=0), head(frames=64), head(extra_headers=-1)),
    ],
)
def test_headers_of_other_streams_are_refused(damaged: bytes) -> None:
    with pytest.raises(InvalidAudio, match="Speex"):
        SpeexPages(damaged)


def test_a_damaged_header_breaks_the_stream() -> None:
    stream, damaged = OggAudio(max_append_s=1200), head(mode=9)
    first_page = struct.pack("<4sBBqIIIBB", b"OggS", 0, 2, 0, 1, 0, 0, 1, len(damaged)) + damaged
    with pytest.raises(InvalidAudio, match="unsupported Speex"):
        stream.decode(first_page + FILE[len(first_page) :])
    assert stream.broken


@given(
    header=st.builds(
        head,
        rate=st.sampled_from([8_000, 16_000, 32_000, 44_100]),
        mode=st.integers(0, 2),
        channels=st.integers(1, 2),
        frames=st.integers(1, 10),
    ),
    packets=st.lists(st.one_of(st.binary(max_size=80), st.sampled_from(PACKETS)), max_size=10),
)
def test_garbage_is_sound_or_refused(header: bytes, packets: list[bytes]) -> None:
    pages = SpeexPages(header)
    try:
        samples = pages.decode(page(b"comments", *packets))
    except InvalidAudio:
        return
    assert len(samples) <= len(packets) * 10 * 640
    assert np.isfinite(samples).all()
    assert np.abs(samples).max(initial=0) <= 1
