from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.audio.decoder import HEAVY_BYTES, StreamDecoder
from qwen3_asr_server.audio.pcm import encode_s16le
from qwen3_asr_server.domain import AudioEncoding, AudioFormat, Samples
from qwen3_asr_server.errors import InvalidAudio
from support.audio_files import chirp, cut, ogg_opus, opus_packets, tone, wav_bytes

PCM = AudioFormat()
OPUS = AudioFormat(AudioEncoding.OPUS)


def decoded(audio_format: AudioFormat, *pieces: bytes) -> Samples:
    decoder = StreamDecoder(audio_format)
    return np.concatenate([*map(decoder.decode, pieces), decoder.flush()])


def pitch(samples: Samples) -> float:
    """The strongest frequency in Hz."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples))


STREAMS = {
    "pcm": (PCM, encode_s16le(chirp(0.2)) + b"\x01"),
    "pcm 8 kHz": (AudioFormat(sample_rate=8_000), encode_s16le(chirp(0.2, 8_000))),
    "pcm that begins like a WAV": (PCM, b"RIFF\x01\x02\x03\x04WAVY" + encode_s16le(chirp(0.1))),
    "WAV 44.1 kHz stereo": (PCM, wav_bytes(chirp(0.1, 44_100), 44_100, 2)),
    "WAV float": (PCM, wav_bytes(chirp(0.1), subtype="f32le")),
    "two WAVs": (PCM, wav_bytes(chirp(0.1, 8_000), 8_000) * 2),
    "Ogg": (OPUS, ogg_opus(chirp(0.3), page_ms=60)),
}


@pytest.mark.parametrize(("audio_format", "data"), STREAMS.values(), ids=STREAMS)
def test_single_bytes_give_the_same(audio_format: AudioFormat, data: bytes) -> None:
    np.testing.assert_array_equal(decoded(audio_format, *(bytes([byte]) for byte in data)), decoded(audio_format, data))


@settings(max_examples=60)
@given(stream=st.sampled_from(sorted(STREAMS)), cuts=st.lists(st.integers(0, 20_000), max_size=20))
def test_the_cut_does_not_matter(stream: str, cuts: list[int]) -> None:
    audio_format, data = STREAMS[stream]
    np.testing.assert_array_equal(decoded(audio_format, *cut(data, cuts)), decoded(audio_format, data))


@given(
    data=st.binary(max_size=40),
    magic=st.sampled_from([b"", b"R", b"RIFF", b"RIFFxxxxWAV"]),
    cuts=st.lists(st.integers(0, 60)),
)
def test_pcm_is_complete_whatever_it_begins_with(data: bytes, magic: bytes, cuts: list[int]) -> None:
    stream = magic + b"\x00" + data if magic else data.lstrip(b"R")
    expected = np.frombuffer(stream[: len(stream) // 2 * 2], "<i2") / np.float32(32768)
    np.testing.assert_array_equal(decoded(PCM, *cut(stream, cuts)), expected)


@pytest.mark.parametrize("held", [b"RI", b"RIFF", b"RIFFxxxxWA"])
def test_a_header_that_never_came_was_pcm(held: bytes) -> None:
    decoder = StreamDecoder(PCM)
    assert len(decoder.decode(held)) == 0
    assert len(decoder.flush()) == len(held) // 2


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_pcm_at_any_rate_becomes_16_khz(rate: int) -> None:
    samples = decoded(AudioFormat(sample_rate=rate), encode_s16le(tone(1_000, 1, rate)))
    assert samples.dtype == np.float32
    assert len(samples) == 16_000
    assert pitch(samples) == 1_000


@pytest.mark.parametrize("announced", [8_000, 48_000])
def test_a_wav_header_overrides_the_announced_rate(announced: int) -> None:
    samples = decoded(AudioFormat(sample_rate=announced), wav_bytes(tone(1_000, 1, 24_000), 24_000, 2))
    assert len(samples) == 16_000
    assert pitch(samples) == 1_000


@pytest.mark.parametrize("announced", [8_000, 16_000])
def test_bare_opus_packets_keep_their_pitch(announced: int) -> None:
    audio_format = AudioFormat(AudioEncoding.OPUS, announced)
    samples = decoded(audio_format, *opus_packets(tone(1_000, 1, announced), announced))
    assert pitch(samples[:16_000]) == pytest.approx(1_000, abs=1)


def test_stereo_is_mixed_down() -> None:
    left, right = tone(1_000, 0.5), tone(3_000, 0.5)
    samples = decoded(PCM, wav_bytes(np.stack([left, right], axis=1), channels=2))
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize("audio_format", [PCM, OPUS])
def test_nothing_gives_nothing(audio_format: AudioFormat) -> None:
    decoder = StreamDecoder(audio_format)
    for samples in (decoder.decode(b""), decoder.flush(), decoder.decode(b""), decoder.flush()):
        assert samples.dtype == np.float32
        assert samples.shape == (0,)


def test_an_empty_message_within_a_stream_is_no_packet() -> None:
    decoder = StreamDecoder(OPUS)
    first, second, *_ = opus_packets(chirp(0.1))
    decoder.decode(first)
    assert len(decoder.decode(b"")) == 0
    assert len(decoder.decode(second)) > 0


@pytest.mark.parametrize(("audio_format", "data"), STREAMS.values(), ids=STREAMS)
def test_a_new_stream_begins_after_flush_and_reset(audio_format: AudioFormat, data: bytes) -> None:
    decoder = StreamDecoder(audio_format)
    expected = decoded(audio_format, data)
    decoder.decode(data[: len(data) // 2])
    decoder.reset()
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([decoder.decode(data), decoder.flush()]), expected)


def test_a_header_begins_a_stream_only_after_flush() -> None:
    decoder, file = StreamDecoder(PCM), wav_bytes(chirp(0.1))
    decoder.decode(b"\x00\x00")
    assert len(decoder.decode(file)) == len(file) // 2
    decoder.flush()
    assert len(decoder.decode(file)) == 1_600


BAD_WAV = b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x02\x00" + bytes(100)


@pytest.mark.parametrize(
    ("audio_format", "bad", "good"),
    [
        (PCM, BAD_WAV, wav_bytes(chirp(0.1))),
        (OPUS, b"OggSgarbage", ogg_opus(chirp(0.1))),
        (OPUS, b"\xff", opus_packets(chirp(0.1))[0]),
    ],
    ids=["WAV", "Ogg", "packet"],
)
def test_after_an_error_a_good_beginning_is_heard(audio_format: AudioFormat, bad: bytes, good: bytes) -> None:
    decoder = StreamDecoder(audio_format)
    for _ in range(2):
        with pytest.raises(InvalidAudio):
            decoder.decode(bad)
    np.testing.assert_array_equal(np.concatenate([decoder.decode(good), decoder.flush()]), decoded(audio_format, good))


@pytest.mark.parametrize(("audio_format", "bad"), [(PCM, BAD_WAV), (OPUS, b"OggSgarbage")], ids=["WAV", "Ogg"])
def test_the_rest_of_a_broken_container_is_never_taken_for_sound(audio_format: AudioFormat, bad: bytes) -> None:
    decoder = StreamDecoder(audio_format)
    for data in (bad, bytes(100), bytes(100)):
        with pytest.raises(InvalidAudio):
            decoder.decode(data)
    assert len(decoder.flush()) == 0
    good = [encode_s16le(chirp(0.1))] if audio_format is PCM else opus_packets(chirp(0.1))
    assert sum(len(decoder.decode(data)) for data in good) > 1_000


@pytest.mark.parametrize(
    ("audio_format", "data"),
    [
        (PCM, encode_s16le(tone(440, 1.1))),
        (AudioFormat(sample_rate=48_000), encode_s16le(tone(440, 1.1, 48_000))),
        (PCM, wav_bytes(tone(440, 1.1, 8_000), 8_000, 2, "f64le")),
        (OPUS, ogg_opus(tone(440, 1.1), page_ms=100)),
    ],
    ids=["pcm", "48 kHz", "WAV", "Ogg"],
)
def test_too_much_in_one_message_is_refused_whole(audio_format: AudioFormat, data: bytes) -> None:
    decoder = StreamDecoder(audio_format, max_append_s=1)
    with pytest.raises(InvalidAudio, match="more than 1 s of audio"):
        decoder.decode(data)
    assert len(decoder.flush()) == 0
    half = len(data) // 2
    parts = [decoder.decode(data[:half]), decoder.decode(data[half:]), decoder.flush()]
    assert sum(map(len, parts)) == 17_600


@pytest.mark.parametrize(
    ("audio_format", "size", "heavy"),
    [(PCM, HEAVY_BYTES, False), (PCM, HEAVY_BYTES + 1, True), (OPUS, 1, True)],
)
def test_heavy_work_is_announced(audio_format: AudioFormat, size: int, heavy: bool) -> None:
    assert StreamDecoder(audio_format).is_heavy(bytes(size)) is heavy


@given(
    audio_format=st.sampled_from([PCM, OPUS, AudioFormat(sample_rate=8_000)]),
    messages=st.lists(
        st.builds(
            bytes.__add__,
            st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"OggS\0\2", BAD_WAV[:20]]),
            st.binary(max_size=90),
        ),
        max_size=8,
    ),
)
def test_garbage_is_sound_or_refused(audio_format: AudioFormat, messages: list[bytes]) -> None:
    decoder = StreamDecoder(audio_format)
    parts = [np.empty(0, np.float32)]
    for message in messages:
        with suppress(InvalidAudio):
            parts.append(decoder.decode(message))
    samples = np.concatenate([*parts, decoder.flush()])
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert np.abs(samples).max(initial=0) <= 1
