from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qwen3_asr_server.audio.containers import Container, container_of
from qwen3_asr_server.audio.decoder import HEAVY_BYTES, MAX_FILES_IN_A_MESSAGE, StreamDecoder
from qwen3_asr_server.audio.pcm import encode_s16le
from qwen3_asr_server.domain import AudioEncoding, AudioFormat, Samples
from qwen3_asr_server.errors import InvalidAudio
from support import speech
from support.audio_files import chirp, cut, framed, ogg_opus, opus_packets, tone, wav_bytes

PCM = AudioFormat()
OPUS = AudioFormat(AudioEncoding.OPUS)
MP3, AAC = AudioFormat(AudioEncoding.MP3), AudioFormat(AudioEncoding.AAC)
AMR, SPEEX = AudioFormat(AudioEncoding.AMR), AudioFormat(AudioEncoding.SPEEX)
SPEEX_FILE = (Path(__file__).resolve().parents[2] / "data" / "formats" / "en-00.spx").read_bytes()


def decoded(audio_format: AudioFormat, *pieces: bytes) -> Samples:
    decoder = StreamDecoder(audio_format)
    return np.concatenate([*map(decoder.decode, pieces), decoder.flush()])


def endless(wav: bytes) -> bytes:
    """The same file as a recorder writes it that does not know its length yet."""
    at = wav.index(b"data") + 4
    return wav[:at] + b"\xff\xff\xff\xff" + wav[at + 4 :]


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
    "two WAVs of different kinds": (
        PCM,
        wav_bytes(chirp(0.1, 8_000), 8_000) + wav_bytes(chirp(0.1, 44_100), 44_100, 2),
    ),
    "WAV header, then samples": (PCM, wav_bytes(chirp(0.1)) + encode_s16le(chirp(0.2))),
    "WAV header 24 bits, odd, then samples": (PCM, wav_bytes(chirp(0.1)[:-1], subtype="s24le") + bytes(3 * 999)),
    "Ogg": (OPUS, ogg_opus(chirp(0.3), page_ms=60)),
    "Ogg Speex": (SPEEX, SPEEX_FILE),
    "Ogg Opus, then Speex": (SPEEX, ogg_opus(chirp(0.1)) + SPEEX_FILE),
    "MP3": (MP3, framed("mp3", chirp(0.3, 44_100), 44_100, 2)),
    "AAC": (AAC, framed("aac", chirp(0.3))),
    "AMR": (AMR, framed("amr", chirp(0.3, 8_000), 8_000, bit_rate=12_200)),
    "WAV announced as MP3": (MP3, wav_bytes(chirp(0.1))),
    "Ogg announced as AMR": (AMR, ogg_opus(chirp(0.3), page_ms=60)),
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
    stream = magic + b"\x00" + data if magic else data
    assume(container_of(stream) in (None, Container.NONE))
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


FRAMED = {name: STREAMS[name] for name in ("MP3", "AAC", "AMR")}


@pytest.mark.parametrize(("audio_format", "data"), STREAMS.values(), ids=STREAMS)
def test_a_header_begins_a_new_stream_after_flush_and_drop(audio_format: AudioFormat, data: bytes) -> None:
    decoder = StreamDecoder(audio_format)
    if data == FRAMED["AAC"][1]:
        data = b"ID3\4\0\0\0\0\0\0" + data  # without a tag, it goes on: see below
    expected = decoded(audio_format, data)
    decoder.decode(data[: len(data) // 2])
    decoder.drop()
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([decoder.decode(data), decoder.flush()]), expected)


@settings(max_examples=60)
@given(
    rate=st.sampled_from([8_000, 16_000, 48_000]),
    announced=st.integers(0, 2_000),
    packet_bytes=st.integers(1, 2_000),
)
def test_samples_behind_a_wav_header_are_heard_whatever_size_it_announced(
    rate: int, announced: int, packet_bytes: int
) -> None:
    speech = encode_s16le(chirp(0.05, rate))
    file = wav_bytes(chirp(0.05, rate), rate)
    at = file.index(b"data") + 4
    stream = file[:at] + announced.to_bytes(4, "little") + speech
    packets = cut(stream, range(0, len(stream), packet_bytes))
    np.testing.assert_array_equal(decoded(PCM, *packets), decoded(AudioFormat(sample_rate=rate), speech))


OTHER = {
    "WAV": (wav_bytes(chirp(0.1, 48_000), 48_000, 2, "f32le"), decoded(PCM, wav_bytes(chirp(0.1, 48_000), 48_000, 2))),
    "Ogg": (ogg_opus(chirp(0.1)), decoded(PCM, ogg_opus(chirp(0.1)))),
}


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ([wav_bytes(chirp(0.1, 8_000), 8_000)], "WAV"),
        ([wav_bytes(chirp(0.1, 8_000), 8_000)], "Ogg"),
        ([wav_bytes(chirp(0.1, 8_000), 8_000), bytes(320)], "WAV"),
        ([wav_bytes(chirp(0.1, 8_000), 8_000), bytes(320)], "Ogg"),
        ([ogg_opus(chirp(0.1))], "WAV"),
    ],
    ids=["WAV-WAV", "WAV-Ogg", "WAV-silence-WAV", "WAV-silence-Ogg", "Ogg-WAV"],
)
def test_another_container_may_follow_without_a_flush(first: list[bytes], kind: str) -> None:
    second, expected = OTHER[kind]
    heard = decoded(PCM, *first, second)
    assert len(heard) == 1_600 + 320 * (len(first) - 1) + 1_600
    np.testing.assert_allclose(heard[-1_600:], expected, atol=1e-3)


def test_a_message_holds_a_limited_number_of_files() -> None:
    file = wav_bytes(chirp(0.01, 8_000), 8_000)
    assert len(decoded(PCM, file * MAX_FILES_IN_A_MESSAGE)) == 160 * MAX_FILES_IN_A_MESSAGE
    decoder = StreamDecoder(PCM)
    for data in (file * (MAX_FILES_IN_A_MESSAGE + 1), bytes(10)):
        with pytest.raises(InvalidAudio, match="WAV file"):
            decoder.decode(data)
    assert len(decoder.decode(file * 2)) > 0


def test_files_in_one_message_share_the_limit_of_its_length() -> None:
    decoder, file = StreamDecoder(PCM, max_append_s=1), wav_bytes(chirp(0.6))
    with pytest.raises(InvalidAudio, match="1 s of audio"):
        decoder.decode(file * 2)


def test_a_header_begins_a_stream_only_after_flush() -> None:
    decoder, file = StreamDecoder(PCM), wav_bytes(chirp(0.1))
    decoder.decode(bytes(8))
    assert len(decoder.decode(file)) == len(file) // 2
    decoder.flush()
    assert len(decoder.decode(file)) == 1_600


LONG = {
    "WAV 8 kHz": (PCM, wav_bytes(chirp(1, 8_000, high=600), 8_000)),
    "WAV without a size": (PCM, endless(wav_bytes(chirp(1, 8_000, high=600), 8_000))),
    "WAV stereo 44.1 kHz": (PCM, wav_bytes(chirp(1, 44_100, high=600), 44_100, 2, "s24le")),
    "Ogg": (OPUS, ogg_opus(chirp(1, high=600), page_ms=60)),
    "Ogg announced as pcm": (PCM, ogg_opus(chirp(1, high=600), page_ms=60)),
    "MP3": (MP3, framed("mp3", chirp(1, 44_100, high=600), 44_100, 2)),
    "AAC": (AAC, b"ID3\4\0\0\0\0\0\0" + framed("aac", chirp(1, high=600))),
    "AMR": (AMR, framed("amr", chirp(1, 8_000, high=600), 8_000, bit_rate=12_200)),
    "Speex": (SPEEX, SPEEX_FILE),
}


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(LONG)),
    ends=st.lists(st.integers(12, 40_000), max_size=3),
    cuts=st.lists(st.integers(0, 40_000), max_size=5),
)
def test_a_container_goes_on_behind_the_end_of_an_item(name: str, ends: list[int], cuts: list[int]) -> None:
    """Nothing is lost or doubled but for the rounding of the resampler, a sample for each item.

    The chirp is low, so that a shift by some samples changes it little; ten milliseconds lost or doubled still do.
    """
    audio_format, data = LONG[name]
    whole = decoded(audio_format, data)
    decoder = StreamDecoder(audio_format)
    parts = []
    for item in cut(data, ends):
        parts += map(decoder.decode, cut(item, cuts))
        with suppress(InvalidAudio):  # no frame has come so far
            parts.append(decoder.flush())
    heard = np.concatenate(parts)
    assert abs(len(heard) - len(whole)) <= len(ends)
    count = min(len(heard), len(whole))
    assert np.corrcoef(heard[:count], whole[:count])[0, 1] > 0.97


@pytest.mark.parametrize(("audio_format", "data"), LONG.values(), ids=LONG)
def test_a_container_goes_on_behind_what_was_dropped(audio_format: AudioFormat, data: bytes) -> None:
    decoder, half = StreamDecoder(audio_format), len(data) // 2 + 1
    before = decoder.decode(data[:half])
    decoder.drop()
    decoder.drop()
    after = np.concatenate([decoder.decode(data[half:]), decoder.flush()])
    whole = decoded(audio_format, data)
    assert 0 <= len(whole) - len(before) - len(after) < 2_000
    assert np.corrcoef(after[200:], whole[len(whole) - len(after) :][200:])[0, 1] > 0.97


def test_opus_packets_go_on_behind_the_end_of_an_item() -> None:
    packets = opus_packets(chirp(0.4))
    items = [decoded_items(OPUS, [packets[:at], packets[at:]]) for at in (7, 8)]
    np.testing.assert_allclose(np.concatenate(items[0])[6_000:], np.concatenate(items[1])[6_000:], atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_after_the_end_of_a_wav_file_pcm_may_follow(rate: int) -> None:
    """As announced: the file's own format ends with it."""
    samples = decoded_items(PCM, [[wav_bytes(chirp(0.1, rate), rate)], [encode_s16le(chirp(0.2))]])
    assert [len(each) for each in samples] == [1_600, 3_200]


def test_after_the_end_of_an_ogg_stream_packets_may_follow() -> None:
    samples = decoded_items(OPUS, [[ogg_opus(chirp(0.1))], opus_packets(chirp(0.2)), [ogg_opus(chirp(0.1))]])
    assert [len(each) for each in samples] == [1_600, pytest.approx(3_200, abs=320), 1_600]


@pytest.mark.parametrize(("audio_format", "data"), LONG.values(), ids=LONG)
def test_every_item_may_be_a_file_of_its_own_however_cut(audio_format: AudioFormat, data: bytes) -> None:
    short = data[: len(data) // 2]
    items = [[data], [short], [data[:9], data[9:]], cut(data, range(100))]
    samples = decoded_items(audio_format, items)
    for number in (2, 3):
        np.testing.assert_array_equal(samples[number], samples[0])


def decoded_items(audio_format: AudioFormat, items: list[list[bytes]]) -> list[Samples]:
    decoder = StreamDecoder(audio_format)
    return [decoded_item(decoder, *pieces) for pieces in items]


def decoded_item(decoder: StreamDecoder, *pieces: bytes) -> Samples:
    return np.concatenate([*map(decoder.decode, pieces), decoder.flush()])


FOREIGN = {
    "FLAC": speech.clip("queue-thankyou").path.read_bytes(),
    "MP3": b"ID3\x04\0\0\0\0\0\x0a" + bytes(100),
    "WebM": b"\x1aE\xdf\xa3\x9fB\x86\x81" + bytes(100),
    "MP4": b"\0\0\0\x20ftypM4A " + bytes(100),
}


@pytest.mark.parametrize(("audio_format", "data"), FRAMED.values(), ids=FRAMED)
def test_frames_of_the_next_item_need_no_header(audio_format: AudioFormat, data: bytes) -> None:
    headless = data.removeprefix(b"#!AMR\n") if audio_format is AMR else data
    samples = decoded_items(audio_format, [[data], [headless], [data[:9], data[9:]]])
    assert max(map(len, samples)) - min(map(len, samples)) <= 1


@pytest.mark.parametrize(("audio_format", "data"), FRAMED.values(), ids=FRAMED)
def test_junk_under_the_name_of_a_codec_is_refused_at_the_end_at_least(audio_format: AudioFormat, data: bytes) -> None:
    decoder = StreamDecoder(audio_format)
    for junk in (b"\0", b"not audio"):
        with pytest.raises(InvalidAudio):
            decoded_item(decoder, junk)
        decoder.drop()
    np.testing.assert_array_equal(np.concatenate([decoder.decode(data), decoder.flush()]), decoded(audio_format, data))


@pytest.mark.parametrize("data", [bytes(2), bytes(500), b"Speex   " + bytes(72)])
def test_speex_has_to_come_in_ogg(data: bytes) -> None:
    decoder = StreamDecoder(SPEEX)
    with pytest.raises(InvalidAudio, match="Speex, which has to come in Ogg"):
        decoded_item(decoder, data)
    assert len(decoder.decode(SPEEX_FILE)) > 16_000


@pytest.mark.parametrize(
    ("audio_format", "data", "told"),
    [
        (PCM, FRAMED["MP3"][1], "Where the protocol has a format mp3, announce that"),
        (OPUS, FRAMED["AMR"][1], "looks like an AMR file.* Where the protocol has a format amr, announce that"),
        (AAC, b"\0\0\0\x20ftypM4A ", "looks like an MP4 file. Send AAC as ADTS frames.* as recordings only"),
        (AAC, FRAMED["AMR"][1], "Send AAC as ADTS frames"),
        (MP3, b"fLaC" + bytes(50), "looks like a FLAC file. Send MP3 as announced"),
        (AMR, FRAMED["MP3"][1], "looks like an MP3 file. Send AMR as announced"),
        (SPEEX, FRAMED["MP3"][1], "looks like an MP3 file. Send Speex in Ogg"),
    ],
)
def test_what_else_may_be_sent_is_told(audio_format: AudioFormat, data: bytes, told: str) -> None:
    with pytest.raises(InvalidAudio, match=told):
        StreamDecoder(audio_format).decode(data)


@pytest.mark.parametrize("audio_format", [PCM, OPUS], ids=["pcm", "opus"])
@pytest.mark.parametrize(("name", "data"), FOREIGN.items(), ids=FOREIGN)
def test_other_containers_are_refused_by_name(audio_format: AudioFormat, name: str, data: bytes) -> None:
    decoder = StreamDecoder(audio_format)
    for part in (data[:50], data[50:]):
        with pytest.raises(InvalidAudio, match=f"looks like an? {name}.* Send 16-bit pcm, a WAV"):
            decoder.decode(part)
    assert len(decoder.flush()) == 0
    assert len(decoder.decode(wav_bytes(chirp(0.1)))) == 1_600


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_other_containers_are_looked_for_at_the_very_start_only(data: bytes) -> None:
    assert len(decoded(PCM, bytes(20) + data)) == (20 + len(data)) // 2


@pytest.mark.parametrize("audio_format", [PCM, OPUS], ids=["pcm", "opus"])
def test_the_header_wins_over_what_was_announced(audio_format: AudioFormat) -> None:
    assert len(decoded(audio_format, wav_bytes(chirp(0.5, 8_000), 8_000))) == 8_000
    assert len(decoded(audio_format, ogg_opus(chirp(0.5)))) == 8_000


def test_a_short_first_packet_does_not_wait_for_the_next() -> None:
    """It may look like the beginning of an MP4 file; bare packets must stay one a message."""
    decoder = StreamDecoder(OPUS)
    assert len(decoder.decode(b"\0\0")) + len(decoder.flush()) == 160


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
    [(PCM, HEAVY_BYTES, False), (PCM, HEAVY_BYTES + 1, True), (OPUS, 1, True), (MP3, 1, True), (SPEEX, 1, True)],
)
def test_heavy_work_is_announced(audio_format: AudioFormat, size: int, heavy: bool) -> None:
    assert StreamDecoder(audio_format).is_heavy(bytes(size)) is heavy


def test_ogg_is_heavy_under_any_name() -> None:
    decoder, data = StreamDecoder(PCM), ogg_opus(chirp(0.1), page_ms=20)
    assert decoder.is_heavy(data[:10])
    decoder.decode(data[:10])
    assert decoder.is_heavy(data[10:200])
    decoder.decode(data[10:200])
    decoder.flush()
    assert decoder.is_heavy(data[200:])


@given(
    audio_format=st.sampled_from([PCM, OPUS, AudioFormat(sample_rate=8_000), MP3, AAC, AMR, SPEEX]),
    messages=st.lists(
        st.builds(
            bytes.__add__,
            st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"OggS\0\2", BAD_WAV[:20], b"#!AMR\n", b"\xff\xf1\x50\x80"]),
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
    with suppress(InvalidAudio):
        parts.append(decoder.flush())
    samples = np.concatenate(parts)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert np.abs(samples).max(initial=0) <= 1
