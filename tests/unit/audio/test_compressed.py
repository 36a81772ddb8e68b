from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.audio.compressed import CompressedAudio, FramedEncoding
from qwen3_asr_server.audio.frames import MAX_JUNK_BYTES
from qwen3_asr_server.domain import AudioEncoding, Samples
from qwen3_asr_server.errors import InvalidAudio
from support import speech
from support.audio_files import chirp, cut, framed, ogg_opus, tone, wav_bytes
from support.media_files import delay_and_likeness

MP3, AAC, AMR = AudioEncoding.MP3, AudioEncoding.AAC, AudioEncoding.AMR
SAID = speech.clip("queue-thankyou").samples
WIDE_BAND = (Path(__file__).resolve().parents[2] / "data" / "formats" / "en-00.awb").read_bytes()


def said(rate: int) -> Samples:
    return SAID if rate == 16_000 else soxr.resample(SAID, 16_000, rate)


def amr(bit_rate: int) -> bytes:
    return framed("amr", said(8_000), 8_000, bit_rate=bit_rate)


FILES: dict[str, tuple[FramedEncoding, bytes]] = {
    "mp3 44.1 kHz stereo": (MP3, framed("mp3", said(44_100), 44_100, 2)),
    "mp3 16 kHz": (MP3, framed("mp3", SAID, bit_rate=32_000)),
    "mp3 8 kHz": (MP3, framed("mp3", said(8_000), 8_000, bit_rate=16_000)),
    "mp3 with a picture": (MP3, b"ID3\3\0\0\0\2\0\0" + b"\xff\xd8\xff\xe0" * 8_192 + framed("mp3", SAID)),
    "aac 48 kHz stereo": (AAC, framed("aac", said(48_000), 48_000, 2)),
    "aac 16 kHz": (AAC, framed("aac", SAID)),
    "aac 5.1": (AAC, framed("aac", said(44_100), 44_100, 6, 256_000)),
    "amr 12.2": (AMR, amr(12_200)),
    "amr 4.75": (AMR, amr(4_750)),
    "amr wide band": (AMR, WIDE_BAND),
}


def decoded(encoding: FramedEncoding, *pieces: bytes) -> Samples:
    stream = CompressedAudio(encoding, max_append_s=1200)
    return np.concatenate([*map(stream.decode, pieces), stream.flush()])


def decoded_by_a_demuxer(file: bytes) -> Samples:
    """What FFmpeg makes of the whole file, with nothing cut off at its ends."""
    with av.open(BytesIO(file)) as container:
        stream = container.streams.audio[0]
        stream.codec_context.options = {"flags2": "+skip_manual"}
        to_floats = av.AudioResampler("fltp")
        frames = [out for frame in container.decode(stream) for out in to_floats.resample(frame)]
        mono = np.concatenate([frame.to_ndarray() for frame in frames], axis=1).mean(axis=0)
        return soxr.resample(mono, frames[0].sample_rate, 16_000)


@pytest.mark.parametrize(("encoding", "file"), FILES.values(), ids=FILES)
def test_it_sounds_as_ffmpeg_reads_the_file(encoding: FramedEncoding, file: bytes) -> None:
    heard, expected = decoded(encoding, file), decoded_by_a_demuxer(file)
    assert heard.dtype == np.float32
    assert len(heard) == len(expected)
    assert np.corrcoef(heard, expected)[0, 1] > 0.998


def test_pauses_in_amr_may_be_comfort_noise() -> None:
    spoken = np.concatenate([said(8_000), np.zeros(8_000, np.float32), said(8_000)])
    file = framed("amr", spoken, 8_000, bit_rate=12_200, codec_options={"dtx": "1"})
    assert len(file) < len(spoken) / 160 * 32 * 0.85
    heard = decoded(AMR, file)
    assert len(heard) == pytest.approx(2 * len(spoken), abs=640)
    assert np.abs(heard[len(SAID) + 4_000 :][:8_000]).max() < 0.02


@pytest.mark.parametrize(
    ("name", "delay_s"),
    [("mp3 44.1 kHz stereo", 0.025), ("mp3 16 kHz", 0.069), ("mp3 8 kHz", 0.138), ("aac 16 kHz", 0.064)],
)
def test_the_delay_of_the_encoder_stays(name: str, delay_s: float) -> None:
    heard = decoded(*FILES[name])
    assert delay_and_likeness(SAID, heard) == (pytest.approx(delay_s, abs=0.001), pytest.approx(1, abs=0.02))


@pytest.mark.parametrize(("encoding", "file"), FILES.values(), ids=FILES)
def test_audio_comes_as_the_bytes_arrive(encoding: FramedEncoding, file: bytes) -> None:
    audio_at = file.rindex(b"\xff\xd8\xff\xe0") if file.startswith(b"ID3\3") else 0
    stream = CompressedAudio(encoding, max_append_s=1200)
    heard = len(stream.decode(file[: audio_at + (len(file) - audio_at) // 2]))
    assert 0.25 < heard / len(decoded(encoding, file)) < 0.75


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(FILES)), cuts=st.lists(st.integers(0, 40_000), max_size=20))
def test_the_cut_does_not_matter(name: str, cuts: list[int]) -> None:
    encoding, file = FILES[name]
    np.testing.assert_array_equal(decoded(encoding, *cut(file, cuts)), decoded(encoding, file))


@pytest.mark.parametrize("name", ["mp3 8 kHz", "aac 16 kHz", "amr 4.75"])
def test_single_bytes_give_the_same_too(name: str) -> None:
    encoding, file = FILES[name]
    pieces = [bytes([byte]) for byte in file]
    np.testing.assert_array_equal(decoded(encoding, *pieces), decoded(encoding, file))


@pytest.mark.parametrize(("encoding", "file"), FILES.values(), ids=FILES)
def test_files_may_follow_one_another(encoding: FramedEncoding, file: bytes) -> None:
    once = decoded(encoding, file)
    twice = decoded(encoding, file + file)
    assert abs(len(twice) - 2 * len(once)) <= 1
    assert delay_and_likeness(once, twice[len(once) :])[1] > 0.99


@pytest.mark.parametrize(
    ("encoding", "first", "second"),
    [
        (MP3, framed("mp3", tone(800, 0.5, 44_100), 44_100, 2), framed("mp3", tone(800, 0.5))),
        (AAC, framed("aac", tone(800, 0.5, 48_000), 48_000), framed("aac", tone(800, 0.5), channels=2)),
        (AMR, framed("amr", tone(800, 0.5, 8_000), 8_000, bit_rate=12_200), WIDE_BAND),
    ],
    ids=["mp3", "aac", "amr"],
)
def test_rate_and_channels_may_change_in_mid_stream(encoding: FramedEncoding, first: bytes, second: bytes) -> None:
    """FFmpeg gives the first MP3 frame behind a change with the rate of the one before."""
    heard, parts = decoded(encoding, first + second), [decoded(encoding, first), decoded(encoding, second)]
    assert len(heard) == pytest.approx(sum(map(len, parts)), abs=576)
    assert delay_and_likeness(parts[0], heard[: len(parts[0])])[1] > 0.99
    assert delay_and_likeness(parts[1], heard[-len(parts[1]) + 576 :])[1] > 0.9


@pytest.mark.parametrize("name", ["mp3 16 kHz", "aac 16 kHz"])
def test_a_stream_may_be_joined_in_its_middle(name: str) -> None:
    encoding, file = FILES[name]
    whole, half = decoded(encoding, file), decoded(encoding, file[len(file) // 2 + 1 :])
    assert len(whole) * 0.4 < len(half) < len(whole) * 0.55
    assert np.corrcoef(half[4_000:], whole[len(whole) - len(half) :][4_000:])[0, 1] > 0.99


@pytest.mark.parametrize("name", ["mp3 16 kHz", "aac 16 kHz"])
def test_a_damaged_place_costs_itself_only(name: str) -> None:
    encoding, file = FILES[name]
    at = len(file) // 2
    whole, heard = decoded(encoding, file), decoded(encoding, file[:at] + b"\xff\xfb" * 300 + file[at + 600 :])
    assert 0 <= len(whole) - len(heard) < 8_000
    assert np.corrcoef(whole[-4_000:], heard[-4_000:])[0, 1] > 0.99


NOT_AUDIO = {
    "nothing but zeros": bytes(80_000),
    "text": b"I AM NOT AUDIO, ALTHOUGH I HAVE A FEW LETTERS. " * 2_000,
    "wav": wav_bytes(chirp(3)),
    "ogg": ogg_opus(SAID) * 10,
    "only a tag": b"ID3\4\0\0\0\0\7\0" + bytes(1_024),
    "short": b"\xff",
}


@pytest.mark.parametrize("encoding", [MP3, AAC, AMR])
@pytest.mark.parametrize("data", NOT_AUDIO.values(), ids=NOT_AUDIO)
def test_who_sends_something_else_is_told(encoding: FramedEncoding, data: bytes) -> None:
    with pytest.raises(InvalidAudio, match=encoding.name):
        decoded(encoding, *cut(data, range(0, len(data), 12_800)))


@pytest.mark.parametrize(
    ("encoding", "name"), [(AAC, "mp3 16 kHz"), (MP3, "aac 16 kHz"), (MP3, "amr 12.2"), (AMR, "aac 16 kHz")]
)
def test_one_encoding_is_not_taken_for_another(encoding: FramedEncoding, name: str) -> None:
    with pytest.raises(InvalidAudio):
        decoded(encoding, FILES[name][1])


def test_the_same_is_not_told_twice() -> None:
    stream = CompressedAudio(MP3, max_append_s=1200)
    stream.decode(bytes(100))
    with pytest.raises(InvalidAudio, match="no MP3 audio"):
        stream.flush()
    assert len(stream.flush()) == 0
    assert not stream.broken


def test_a_broken_stream_stays_broken() -> None:
    stream = CompressedAudio(AMR, max_append_s=1200)
    for _ in range(2):
        with pytest.raises(InvalidAudio):
            stream.decode(b"#!AMR\r")
    assert stream.broken
    assert len(stream.flush()) == 0


def test_eight_channels_are_refused() -> None:
    """PyAV ends the process when it is asked for them."""
    with pytest.raises(InvalidAudio, match="no AAC audio"):
        decoded(AAC, framed("aac", chirp(0.3, 48_000), 48_000, 8, 400_000))


def test_frames_that_cannot_be_decoded_are_not_endured_for_ever() -> None:
    """As long as no fewer bytes of others come between them, they are passed over."""
    undecodable, good = framed("aac", chirp(0.5, 48_000), 48_000, 8, 400_000), framed("aac", chirp(1), channels=2)
    assert MAX_JUNK_BYTES / 4 < len(undecodable) < MAX_JUNK_BYTES / 2
    stream = CompressedAudio(AAC, max_append_s=1200)
    for _ in range(8):
        stream.decode(undecodable)
        stream.decode(good * (1 + len(undecodable) // len(good)))
    for _ in range(2):
        stream.decode(undecodable)
    with pytest.raises(InvalidAudio, match="number of channels"):
        stream.decode(undecodable * 3)
    assert stream.broken
    assert len(stream.flush()) == 0


@pytest.mark.parametrize("name", ["mp3 16 kHz", "aac 16 kHz", "amr 12.2"])
def test_a_bomb_is_stopped_and_the_next_frame_is_found(name: str) -> None:
    encoding, file = FILES[name]
    stream = CompressedAudio(encoding, max_append_s=3)
    with pytest.raises(InvalidAudio, match="more than 3 s of audio"):
        stream.decode(file * 3 + file[:99])
    assert len(stream.flush()) == 0
    assert len(stream.decode(file[99:])) > 20_000


def test_the_rate_may_not_change_for_ever() -> None:
    pair = framed("mp3", chirp(0.1, 8_000), 8_000) + framed("mp3", chirp(0.1))
    stream = CompressedAudio(MP3, max_append_s=1200)
    stream.decode(pair * 8)
    with pytest.raises(InvalidAudio, match="rate changes too often"):
        stream.decode(pair * 9)
    assert not stream.broken


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(FILES)),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), max_size=20),
    start=st.integers(0, 2_000),
    upto=st.integers(0, 40_000),
    step=st.integers(100, 10_000),
)
def test_what_is_damaged_is_sound_or_refused(
    name: str, flips: list[tuple[int, int]], start: int, upto: int, step: int
) -> None:
    encoding, file = FILES[name]
    damaged = bytearray(file[start:upto])
    for at, flipped in flips if damaged else []:
        damaged[at % len(damaged)] ^= flipped
    _is_sound_or_refused(encoding, [bytes(damaged[at : at + step]) for at in range(0, len(damaged), step)])


@settings(max_examples=60, deadline=None)
@given(
    encoding=st.sampled_from([MP3, AAC, AMR]),
    payloads=st.lists(
        st.tuples(st.sampled_from([b"", *(f[:60] for _, f in FILES.values())]), st.binary(max_size=600)), max_size=10
    ),
)
def test_garbage_is_sound_or_refused(encoding: FramedEncoding, payloads: list[tuple[bytes, bytes]]) -> None:
    _is_sound_or_refused(encoding, [b"#!AMR\n" if encoding is AMR else b"", *map(b"".join, payloads)])


@settings(max_examples=60, deadline=None)
@given(payloads=st.lists(st.binary(min_size=30, max_size=300), min_size=2, max_size=10), seed=st.integers(0, 15))
def test_garbage_in_frames_is_sound_or_refused(payloads: list[bytes], seed: int) -> None:
    frames = []
    for payload in payloads:
        size = len(payload) + 7
        head = [0xFF, 0xF1, 0x40 | seed % 12 << 2 | seed & 1, (seed & 3) << 6, size >> 3, (size & 7) << 5 | 31, 252]
        frames.append(bytes(head) + payload)
    _is_sound_or_refused(AAC, frames)


def _is_sound_or_refused(encoding: FramedEncoding, messages: list[bytes]) -> None:
    stream, parts = CompressedAudio(encoding, max_append_s=1200), [np.empty(0, np.float32)]
    for step in [*(lambda data=data: stream.decode(data) for data in messages), stream.flush]:
        try:
            parts.append(step())
        except InvalidAudio:
            continue
    heard = np.concatenate(parts)
    assert np.isfinite(heard).all()
    assert np.abs(heard).max(initial=0) <= 1
