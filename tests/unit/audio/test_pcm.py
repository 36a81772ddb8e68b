import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.audio.pcm import PcmDecoder, PcmFormat, SampleType, encode_s16le
from qwen3_asr_server.errors import InvalidAudio
from support.audio_files import cut


@pytest.mark.parametrize(
    ("sample_type", "data", "expected"),
    [
        (SampleType.U8, b"\x80\x00\xff", [0, -1, 127 / 128]),
        (SampleType.S16, b"\x00\x00\x00\x80\xff\x7f\x00\x40", [0, -1, 32767 / 32768, 0.5]),
        (SampleType.S24, b"\x00\x00\x00\x00\x00\x80\x00\x00\x40", [0, -1, 0.5]),
        (SampleType.S32, b"\x00\x00\x00\x80\x00\x00\x00\xc0", [-1, -0.5]),
        (SampleType.F32, np.array([0.25, -0.5], "<f4").tobytes(), [0.25, -0.5]),
        (SampleType.F64, np.array([0.25, -0.5], "<f8").tobytes(), [0.25, -0.5]),
        (SampleType.MULAW, b"\xff\x7f\x80\x00", [0, 0, 32124 / 32768, -32124 / 32768]),
        (SampleType.ALAW, b"\xd5\x55\xaa\x2a", [8 / 32768, -8 / 32768, 32256 / 32768, -32256 / 32768]),
    ],
    ids=lambda value: value.name if isinstance(value, SampleType) else "",
)
def test_known_samples(sample_type: SampleType, data: bytes, expected: list[float]) -> None:
    samples = PcmDecoder(PcmFormat(16_000, sample_type)).decode(data, max_s=1)
    assert samples.dtype == np.float32
    assert samples.tolist() == expected


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_floats_that_are_no_sound_are_made_harmless(dtype: str) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 7, -7, 0.5], dtype).tobytes()
    sample_type = SampleType.F32 if dtype == "<f4" else SampleType.F64
    signalling_nan = {"<f4": b"\x01\x00\xa0\x7f", "<f8": b"\x01\x00\x00\x00\x00\x00\xf4\x7f"}[dtype]
    samples = PcmDecoder(PcmFormat(16_000, sample_type)).decode(values + signalling_nan, max_s=1)
    assert samples.tolist() == [0, 1, -1, 1, -1, 0.5, 0]


def test_channels_are_mixed_by_their_mean() -> None:
    data = np.array([[8192, -8192], [16384, 0]], "<i2").tobytes()
    assert PcmDecoder(PcmFormat(16_000, channels=2)).decode(data, max_s=1).tolist() == [0, 0.25]


@given(
    data=st.binary(max_size=200),
    cuts=st.lists(st.integers(0, 200)),
    sample_type=st.sampled_from(SampleType),
    channels=st.integers(1, 6),
)
def test_the_cut_does_not_matter(data: bytes, cuts: list[int], sample_type: SampleType, channels: int) -> None:
    pcm_format = PcmFormat(16_000, sample_type, channels)
    whole = PcmDecoder(pcm_format).decode(data, max_s=1)
    decoder = PcmDecoder(pcm_format)
    parts = [decoder.decode(piece, max_s=1) for piece in cut(data, cuts)]
    assert len(whole) == len(data) // pcm_format.frame_bytes
    assert np.isfinite(whole).all()
    assert np.abs(whole).max(initial=0) <= 1
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(st.lists(st.integers(-(2**15), 2**15 - 1)))
def test_sixteen_bits_survive_the_round_trip(values: list[int]) -> None:
    data = np.array(values, "<i2").tobytes()
    assert encode_s16le(PcmDecoder(PcmFormat(16_000)).decode(data, max_s=1)) == data


def test_encoding_clips() -> None:
    assert np.frombuffer(encode_s16le(np.array([1.0, 2, -2], np.float32)), "<i2").tolist() == [32767, 32767, -32768]


def test_too_much_is_dropped_and_the_frames_stay_aligned() -> None:
    decoder = PcmDecoder(PcmFormat(8_000))
    assert len(decoder.decode(bytes(16_000), max_s=1)) == 8_000
    with pytest.raises(InvalidAudio, match="more than 1 s of audio"):
        decoder.decode(bytes(16_002) + b"\x00", max_s=1)
    assert decoder.decode(b"\x40", max_s=1).tolist() == [0.5]
