import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.audio.pcm import PcmFormat, SampleType
from qwen3_asr_server.audio.wav import WavReader
from qwen3_asr_server.errors import InvalidAudio
from support.audio_files import SUBTYPES, Subtype, cut, tone, wav_bytes

AUDIO = bytes(range(1, 9))


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def fmt(tag: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, block: int | None = None) -> bytes:
    block = channels * bits // 8 if block is None else block
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits))


def extensible(guid_tail: str = "000000001000800000aa00389b71", tag: int = 1) -> bytes:
    basic = struct.pack("<HHIIHH", 0xFFFE, 1, 16_000, 32_000, 2, 16)
    return chunk(b"fmt ", basic + struct.pack("<HHIH", 22, 16, 4, tag) + bytes.fromhex(guid_tail))


def wav(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


PLAIN = wav(fmt(), chunk(b"data", AUDIO))


@pytest.mark.parametrize(
    ("file", "audio"),
    [
        (PLAIN, AUDIO),
        (PLAIN + b"bare samples", AUDIO + b"bare samples"),
        (PLAIN + b"RIF", AUDIO),
        (PLAIN + b"RIFfles", AUDIO + b"RIFfles"),
        (PLAIN + b"LIST\0\0\0\7", AUDIO + b"LIST\0\0\0\7"),
        (PLAIN + chunk(b"cue ", b"12345") + chunk(b"id3 ", b"tag") + bytes(9), AUDIO + bytes(9)),
        (PLAIN + b"LIST\3\0\0\0odd" + b"fact\0\0\0\0" + bytes(9), AUDIO + bytes(9)),
        (PLAIN + chunk(b"LIST", b"even") + chunk(b"data", AUDIO), AUDIO + AUDIO),
        (wav(chunk(b"LIST", b"odd"), fmt(), chunk(b"fact", b"1234"), chunk(b"data", AUDIO)), AUDIO),
        (wav(fmt(), chunk(b"data", AUDIO), chunk(b"LIST", b"odd")), AUDIO),
        (wav(fmt(), chunk(b"data", AUDIO, size=0)), AUDIO),
        (wav(fmt(), chunk(b"data", AUDIO, size=0xFFFFFFFF)), AUDIO),
        (wav(fmt(), chunk(b"data", AUDIO, size=0x7FFFF000)), AUDIO),
        (wav(fmt(bits=8), chunk(b"data", b"odd")) + b"\x7f" * 9, b"odd" + b"\x7f" * 9),
        (wav(fmt(bits=8), chunk(b"data", b"odd"))[:-1] + b"\x7f" * 9, b"odd" + b"\x7f" * 9),
        (wav(fmt(bits=8), chunk(b"data", b"odd"), chunk(b"LIST", b"odd")), b"odd"),
        (wav(fmt(bits=8), chunk(b"data", b"odd"))[:-1] + chunk(b"LIST", b"odd"), b"odd"),
        (wav(fmt(), chunk(b"data", AUDIO, size=7)) + AUDIO, AUDIO + AUDIO),
        (wav(chunk(b"fmt ", fmt()[8:] + b"\0\0"), chunk(b"data", AUDIO)), AUDIO),
        (wav(fmt()), b""),
    ],
    ids=[
        "plain",
        "samples after the data",
        "a header that never came after the data",
        "samples after the data that begin like a header",
        "no chunk has that size",
        "chunks and samples after the data",
        "a chunk without padding after the data",
        "data after the data",
        "chunks before the data",
        "chunk after the data",
        "size 0",
        "size -1",
        "size too large",
        "odd size, samples behind it",
        "odd size without padding, samples behind it",
        "odd size, chunk behind it",
        "odd size without padding, chunk behind it",
        "a size that no file has, samples behind it",
        "fmt with extension size",
        "no data",
    ],
)
def test_the_audio_is_found(file: bytes, audio: bytes) -> None:
    assert WavReader().feed(file) == audio
    reader = WavReader()
    assert b"".join(reader.feed(file[at : at + 1]) for at in range(len(file))) == audio


def test_the_format_is_known_with_the_first_audio() -> None:
    reader = WavReader()
    assert reader.feed(PLAIN[: -len(AUDIO) - 8]) == b""
    assert reader.format == PcmFormat(16_000)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([fmt(tag=2, bits=4, block=256)], "format tag 2, 4 bits"),
        ([fmt(tag=85, bits=0, block=1)], "format tag 85, 0 bits"),
        ([fmt(bits=12, block=2)], "format tag 1, 12 bits"),
        ([fmt(tag=3, bits=16)], "format tag 3, 16 bits"),
        ([fmt(rate=3_999)], "sample rate: 3999 Hz"),
        ([fmt(rate=192_001)], "sample rate: 192001 Hz"),
        ([fmt(channels=0)], "channels: 0"),
        ([fmt(channels=33)], "channels: 33"),
        ([fmt(block=3)], "contradicts itself"),
        ([chunk(b"fmt ", bytes(14))], "too short"),
        ([chunk(b"fmt ", bytes(2_000))], "damaged"),
        ([chunk(b"LIST", b"", size=1 << 30)], "damaged"),
        ([chunk(b"data", AUDIO)], "audio before its format"),
        ([extensible(tag=2)], "format tag 2"),
        ([extensible(guid_tail="00" * 14)], "unknown kind"),
        ([fmt(tag=0xFFFE)], "unknown kind"),
    ],
)
def test_what_is_not_supported_is_named(chunks: list[bytes], message: str) -> None:
    reader = WavReader()
    with pytest.raises(InvalidAudio, match=message):
        reader.feed(wav(*chunks))
    assert reader.broken
    with pytest.raises(InvalidAudio, match="could not be read"):
        reader.feed(AUDIO)


@pytest.mark.parametrize("behind", [b"", chunk(b"LIST", b"odd")], ids=["directly", "behind a chunk"])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 1000])
def test_the_next_file_is_left_to_the_next_reader(behind: bytes, size: int) -> None:
    file = wav(fmt(), chunk(b"data", AUDIO), behind)
    reader, stream = WavReader(), file + PLAIN
    audio, at = b"", 0
    while not reader.unread:
        audio += reader.feed(stream[at : at + size])
        at += size
    assert audio == AUDIO
    assert reader.unread + stream[at:] == PLAIN


@pytest.mark.parametrize(
    ("behind", "all_came", "ended"),
    [
        (b"", True, True),
        (b"LIS", True, False),
        (b"LIST\4\0\0\0ab", True, False),
        (b"LIST\4\0\0\0abcd", True, True),
        (b"LIST\3\0\0\0abc\0", True, True),
        (b"bare samples", True, False),
        (b"data\4\0\0\0ab", False, False),
        (b"data\4\0\0\0abcd", True, True),
    ],
)
def test_it_is_known_whether_the_file_is_over(behind: bytes, all_came: bool, ended: bool) -> None:
    reader = WavReader()
    reader.feed(PLAIN[:-1])
    assert (reader.all_came, reader.ended) == (False, False)
    reader.feed(PLAIN[-1:] + behind)
    assert (reader.all_came, reader.ended) == (all_came, ended)


def test_an_extensible_format_is_looked_into() -> None:
    reader = WavReader()
    assert reader.feed(wav(extensible(tag=1), chunk(b"data", AUDIO))) == AUDIO
    assert reader.format == PcmFormat(16_000, SampleType.S16)


@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_files_of_ffmpeg_are_understood(subtype: Subtype, channels: int) -> None:
    expected = {
        "u8": SampleType.U8,
        "s16le": SampleType.S16,
        "s24le": SampleType.S24,
        "s32le": SampleType.S32,
        "f32le": SampleType.F32,
        "f64le": SampleType.F64,
        "alaw": SampleType.ALAW,
        "mulaw": SampleType.MULAW,
    }[subtype]
    reader = WavReader()
    audio = reader.feed(wav_bytes(tone(440, 0.01, 8_000), 8_000, channels, subtype))
    assert reader.format == PcmFormat(8_000, expected, channels)
    assert len(audio) == 80 * reader.format.frame_bytes


def feed_all(pieces: list[bytes]) -> tuple[bytes, bytes] | None:
    """Return the audio of a file and what came behind it, None if it was refused somewhere."""
    reader, audio, behind = WavReader(), b"", b""
    try:
        for piece in pieces:
            if reader.unread:
                behind += piece
            else:
                audio += reader.feed(piece)
    except InvalidAudio:
        return None
    return audio, reader.unread + behind


@given(
    junk=st.lists(st.tuples(st.binary(min_size=4, max_size=4), st.binary(max_size=9)), max_size=3),
    damage=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=2),
    cuts=st.lists(st.integers(0, 120)),
)
def test_the_cut_does_not_matter_even_to_damaged_files(
    junk: list[tuple[bytes, bytes]], damage: list[tuple[int, int]], cuts: list[int]
) -> None:
    chunks = [chunk(name, body) for name, body in junk]
    file = np.frombuffer(wav(*chunks, fmt(), chunk(b"data", AUDIO)) + PLAIN, np.uint8).copy()
    for at, value in damage:
        file[at] = value
    data = file.tobytes()
    assert feed_all(cut(data, cuts)) == feed_all([data])
