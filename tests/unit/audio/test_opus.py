import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.audio.ogg_audio import OggAudio
from qwen3_asr_server.audio.opus import OpusPackets
from qwen3_asr_server.domain import Samples
from qwen3_asr_server.errors import InvalidAudio
from support.audio_files import chirp, cut, ogg_opus, opus_packets

ENCODER_DELAYS = range(102, 107)
"""Samples at 16 kHz (6.5 ms): what the encoder looks ahead. Ogg says it, bare packets do not."""


def likeness(heard: Samples, said: Samples) -> float:
    count = min(len(heard), len(said))
    return float(np.corrcoef(heard[:count], said[:count])[0, 1])


def delayed_likeness(heard: Samples, said: Samples) -> float:
    return max(likeness(heard[delay:], said) for delay in ENCODER_DELAYS)


def decoded(stream: OpusPackets | OggAudio, pieces: list[bytes]) -> Samples:
    return np.concatenate([*map(stream.decode, pieces), stream.flush()])


def ogg_decoded(*pieces: bytes) -> Samples:
    return decoded(OggAudio(max_append_s=1200), list(pieces))


def crafted_ogg(head: bytes, *pages: tuple[int, int, list[bytes]]) -> bytes:
    """An Ogg stream from its identification header and pages of (flags, granule, packets under 255 bytes)."""
    stream = b""
    for flags, granule, packets in [(2, 0, [head]), *pages]:
        header = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, 1, 0, 0, len(packets))
        stream += header + bytes(map(len, packets)) + b"".join(packets)
    return stream


def opus_head(version: int = 1, channels: int = 1, pre_skip: int = 0, gain_db: float = 0, mapping: int = 0) -> bytes:
    return struct.pack("<8sBBHIhB", b"OpusHead", version, channels, pre_skip, 48_000, round(gain_db * 256), mapping)


SILENCE_20_MS = b"\x48\x00\x00"


@pytest.mark.parametrize("rate", [8_000, 12_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("frame_ms", [10, 20, 60])
@pytest.mark.parametrize("channels", [1, 2])
def test_bare_packets_sound_like_what_was_said(rate: int, frame_ms: int, channels: int) -> None:
    heard = decoded(OpusPackets(), opus_packets(chirp(1, rate), rate, frame_ms, channels))
    assert heard.dtype == np.float32
    assert delayed_likeness(heard, chirp(1)) > 0.97


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_ogg_sounds_like_what_was_said_in_its_exact_place(rate: int, channels: int) -> None:
    heard = ogg_decoded(ogg_opus(chirp(1.013, rate), rate, channels))
    assert len(heard) == round(1.013 * 16_000)
    assert likeness(heard, chirp(1.013)) > 0.99


@pytest.mark.parametrize("count", [0, 1, 319, 320, 321, 5_000])
@pytest.mark.parametrize("page_ms", [20, 1000])
def test_the_end_of_an_ogg_stream_is_exact(count: int, page_ms: int) -> None:
    assert len(ogg_decoded(ogg_opus(chirp(1)[:count], page_ms=page_ms))) == count


def test_ogg_streams_may_follow_one_another() -> None:
    once = ogg_opus(chirp(0.5))
    twice = ogg_decoded(once + once)
    assert len(twice) == 16_000
    np.testing.assert_allclose(twice[8_200:], ogg_decoded(once)[200:], atol=1e-3)


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 8_000), max_size=30))
def test_the_cut_does_not_matter(cuts: list[int]) -> None:
    stream = ogg_opus(chirp(0.7), page_ms=100)
    np.testing.assert_array_equal(ogg_decoded(*cut(stream, cuts)), ogg_decoded(stream))


def test_single_bytes_give_the_same_too() -> None:
    stream = ogg_opus(chirp(0.3), page_ms=60)
    np.testing.assert_array_equal(ogg_decoded(*(bytes([byte]) for byte in stream)), ogg_decoded(stream))


def test_audio_comes_page_by_page() -> None:
    stream, decoder = ogg_opus(chirp(1), page_ms=100), OggAudio(max_append_s=1200)
    half = decoder.decode(stream[: len(stream) // 2])
    assert 0.3 * 16_000 < len(half) < 0.7 * 16_000


@pytest.mark.parametrize("packet", [b"\xff", b"Og", b"\x03\xff" * 10, bytes(70_000)])
def test_a_bad_packet_is_refused_and_the_next_one_heard(packet: bytes) -> None:
    first, second, *rest = opus_packets(chirp(0.5))
    stream = OpusPackets()
    stream.decode(first)
    with pytest.raises(InvalidAudio, match="cannot be decoded"):
        stream.decode(packet)
    heard = decoded(stream, [second, *rest])
    assert delayed_likeness(heard, chirp(0.5)) > 0.97
    assert not stream.broken


def test_a_bad_packet_in_ogg_costs_its_message() -> None:
    good = crafted_ogg(opus_head(), (0, 4_800, [SILENCE_20_MS] * 5))
    stream = OggAudio(max_append_s=1)
    stream.decode(good)
    with pytest.raises(InvalidAudio, match="cannot be decoded"):
        stream.decode(crafted_ogg(opus_head(), (0, 6_720, [SILENCE_20_MS, b"\xff"])))
    assert not stream.broken
    assert len(decoded(stream, [good])) == 1_600


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\x01vorbis" + bytes(23), "not Opus"),
        (b"OpusHead", "not Opus"),
        (opus_head(version=16), "unsupported"),
        (opus_head(channels=0), "unsupported"),
        (opus_head(channels=3), "unsupported"),
        (opus_head(channels=2, mapping=1), "unsupported"),
    ],
)
def test_other_streams_are_refused_to_their_end(head: bytes, message: str) -> None:
    stream = OggAudio(max_append_s=1200)
    with pytest.raises(InvalidAudio, match=message):
        stream.decode(crafted_ogg(head))
    assert stream.broken
    with pytest.raises(InvalidAudio, match="could not be read before"):
        stream.decode(b"OggS")
    assert len(stream.flush()) == 0


def test_a_first_page_without_a_packet_is_refused() -> None:
    with pytest.raises(InvalidAudio, match="not Opus"):
        OggAudio(1).decode(struct.pack("<4sBBqIIIB", b"OggS", 0, 2, 0, 1, 0, 0, 0))


def test_a_lost_page_boundary_breaks_the_stream() -> None:
    stream = OggAudio(max_append_s=1200)
    with pytest.raises(InvalidAudio, match="damaged"):
        stream.decode(crafted_ogg(opus_head()) + b"garbage")
    assert stream.broken


@pytest.mark.parametrize(
    ("pre_skip", "last_granule", "expected"),
    [(0, 4_800, 1_600), (312, 4_800, 1_496), (0, 4_500, 1_500), (0, 9_999, 1_600), (9_999, 4_800, 0), (0, -1, 1_600)],
    ids=["all", "pre-skip", "end", "end beyond the audio", "pre-skip beyond the audio", "no position"],
)
def test_positions_trim_the_audio(pre_skip: int, last_granule: int, expected: int) -> None:
    packets = [SILENCE_20_MS] * 5
    assert len(ogg_decoded(crafted_ogg(opus_head(pre_skip=pre_skip), (4, last_granule, packets)))) == expected


def test_comments_and_empty_packets_are_no_audio() -> None:
    stream = crafted_ogg(opus_head(), (0, 0, [b"OpusTags and so on"]), (4, 960, [b"", SILENCE_20_MS]))
    assert len(ogg_decoded(stream)) == 320


@pytest.mark.parametrize(("gain_db", "factor"), [(0, 1), (-6.02, 0.5), (100, None)])
def test_the_output_gain_is_applied_and_clipped(gain_db: float, factor: float | None) -> None:
    packets = [packet for packet in opus_packets(chirp(0.4), 48_000, 10) if len(packet) < 255]
    plain = ogg_decoded(crafted_ogg(opus_head(), (0, 1 << 40, packets)))
    louder = ogg_decoded(crafted_ogg(opus_head(gain_db=gain_db), (0, 1 << 40, packets)))
    if factor is None:
        assert np.abs(louder).max() == 1
    else:
        np.testing.assert_allclose(louder, plain * factor, atol=1e-3)


def test_a_bomb_is_stopped_early_and_the_next_page_is_found() -> None:
    page = (0, 0, [SILENCE_20_MS] * 250)
    data = crafted_ogg(opus_head(), *[page] * 6)
    stream = OggAudio(max_append_s=10)
    with pytest.raises(InvalidAudio, match="more than 10 s"):
        stream.decode(data[:-100])
    assert len(decoded(stream, [data[-100:]])) == 5 * 16_000


def test_a_bomb_may_also_be_damaged() -> None:
    stream = OggAudio(max_append_s=1)
    with pytest.raises(InvalidAudio, match="more than 1 s"):
        stream.decode(crafted_ogg(opus_head(), (0, 0, [SILENCE_20_MS] * 250)) + b"garbage")
    assert stream.broken


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=10))
def test_garbage_packets_are_sound_or_refused(packets: list[bytes]) -> None:
    stream = OpusPackets()
    for packet in packets:
        try:
            samples = stream.decode(packet)
        except InvalidAudio:
            continue
        assert len(samples) <= 0.2 * 16_000
        assert np.isfinite(samples).all()


@given(packets=st.lists(st.binary(max_size=60), max_size=10), head=st.binary(max_size=12), flags=st.integers(0, 7))
def test_garbage_in_ogg_is_sound_or_refused(packets: list[bytes], head: bytes, flags: int) -> None:
    stream = OggAudio(max_append_s=1200)
    try:
        samples = stream.decode(crafted_ogg(b"OpusHead" + head, (flags, 960, packets)))
    except InvalidAudio:
        return
    assert np.isfinite(samples).all()
    assert np.abs(samples).max(initial=0) <= 1
