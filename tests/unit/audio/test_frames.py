import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.audio.frames import ADTS, MAX_JUNK_BYTES, MP3, AmrFramer, SyncFramer, Syntax
from qwen3_asr_server.errors import InvalidAudio
from support.audio_files import chirp, cut, framed

CD, LOW = chirp(0.5, 44_100), chirp(0.5, 8_000)
MP3_FILE, AAC_FILE, AMR_FILE = framed("mp3", CD, 44_100, 2), framed("aac", CD, 44_100, 2), framed("amr", LOW, 8_000)

MP3_HEADER, ADTS_HEADER = b"\xff\xfb\x90\x64", b"\xff\xf1\x50\x80\x03\x1f\xfc"
"""Of frames of 417 and 24 bytes."""


def frames_of(framer: SyncFramer | AmrFramer, *pieces: bytes) -> list[bytes]:
    found = [frame for piece in pieces for frame in framer.feed(piece)]
    return found + list(framer.feed(b"", end=True))


MP3_FRAMES, AAC_FRAMES = frames_of(SyncFramer(MP3), MP3_FILE), frames_of(SyncFramer(ADTS), AAC_FILE)
AMR_FRAMES = frames_of(AmrFramer(), AMR_FILE)


def id3(size: int, footer: bool = False, content: bytes = MP3_HEADER) -> bytes:
    """A tag whose content looks like the headers of frames."""
    synchsafe = bytes(size >> 7 * place & 0x7F for place in (3, 2, 1, 0))
    head = b"ID3\x04\0" + bytes([0x10 if footer else 0]) + synchsafe
    return head + (content * size)[:size] + (b"3DI" + head[3:] if footer else b"")


def ape(size: int, header: bool = True) -> bytes:
    """A tag of which the items come behind its header, or before its footer."""
    flags = b"\0\0\0\xa0" if header else b"\0\0\0\x80"
    mark = b"APETAGEX" + (2000).to_bytes(4, "little") + size.to_bytes(4, "little") + b"\1\0\0\0" + flags + bytes(8)
    return mark + (MP3_HEADER * size)[:size] if header else b"title" * (size // 5) + mark


def test_frames_are_whole_and_in_order() -> None:
    """0.5 s of 1152 and of 1024 samples at 44.1 kHz, and of 20 ms, with what the encoders add."""
    assert [len(MP3_FRAMES), len(AAC_FRAMES), len(AMR_FRAMES)] == [21, 23, 26]
    assert MP3_FILE.endswith(b"".join(MP3_FRAMES))
    assert b"".join(AAC_FRAMES) == AAC_FILE
    assert b"".join(AMR_FRAMES) == AMR_FILE.removeprefix(b"#!AMR\n")


def test_the_index_of_an_mp3_file_is_no_frame() -> None:
    before = MP3_FILE[: -sum(map(len, MP3_FRAMES))]
    assert before.startswith(b"ID3")
    assert b"Info" in before


@pytest.mark.parametrize("at", [13, 21, 36])
@pytest.mark.parametrize("mark", [b"Xing", b"Info", b"VBRI"])
def test_an_index_is_known_by_its_mark(at: int, mark: bytes) -> None:
    index = MP3_FRAMES[0][:at] + mark + MP3_FRAMES[0][at + 4 :]
    is_one = mark != b"VBRI" or at == 36
    assert frames_of(SyncFramer(MP3), index, *MP3_FRAMES) == [*([] if is_one else [index]), *MP3_FRAMES]


@pytest.mark.parametrize("bit_rate", [8_000, 16_000, 24_000, 32_000, 64_000, 128_000, 320_000])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000])
def test_sizes_of_mp3_frames_follow_from_their_headers(rate: int, bit_rate: int) -> None:
    file = framed("mp3", chirp(0.3, rate), rate, bit_rate=bit_rate)
    frames = frames_of(SyncFramer(MP3), file)
    assert file.endswith(b"".join(frames))
    assert len(frames) > 2


@pytest.mark.parametrize("bit_rate", [4_750, 5_150, 5_900, 6_700, 7_400, 7_950, 10_200, 12_200])
def test_sizes_of_amr_frames_follow_from_their_first_byte(bit_rate: int) -> None:
    file = framed("amr", LOW, 8_000, bit_rate=bit_rate)
    assert len(frames_of(AmrFramer(), file)) == 26


@pytest.mark.parametrize(
    "tag",
    [id3(0), id3(5), id3(200_000), id3(1_000, footer=True), id3(5) + id3(300), ape(0), ape(100_000), id3(9) + ape(9)],
    ids=["empty", "short", "long", "footer", "two", "ape empty", "ape", "both"],
)
@pytest.mark.parametrize("step", [7, 4_096, 1 << 20])
def test_tags_are_passed_over_wherever_they_stand(tag: bytes, step: int) -> None:
    data = tag + b"".join(MP3_FRAMES) + tag + b"".join(MP3_FRAMES) + tag
    framer = SyncFramer(MP3)
    assert frames_of(framer, *cut(data, range(0, len(data), step))) == MP3_FRAMES * 2
    assert not framer.broken
    assert list(framer.feed(MP3_FRAMES[0])) == MP3_FRAMES[:1], "it is believed without another one: all of the tag is"


@pytest.mark.parametrize("end", [b"TAG" + bytes(125), ape(300, header=False), b"LYRICSBEGIN and so on"])
def test_what_stands_behind_the_last_frame_is_harmless(end: bytes) -> None:
    data = b"".join(MP3_FRAMES) + end
    assert frames_of(SyncFramer(MP3), data, data) == MP3_FRAMES * 2


@pytest.mark.parametrize(("syntax", "frames"), [(MP3, MP3_FRAMES), (ADTS, AAC_FRAMES)], ids=["mp3", "aac"])
@pytest.mark.parametrize("junk", [b"\0", b"\xff", b"ID", b"APE", MP3_HEADER + b"\0", ADTS_HEADER, b"ID3\4" + bytes(6)])
def test_junk_is_passed_over_and_limited(syntax: Syntax, frames: list[bytes], junk: bytes) -> None:
    some = (junk * MAX_JUNK_BYTES)[: MAX_JUNK_BYTES - 16 * len(junk)]
    framer = SyncFramer(syntax)
    assert frames_of(framer, some, *frames) == frames
    with pytest.raises(InvalidAudio, match=r"64 KiB that are not"):
        frames_of(framer, some * 2)
    assert framer.broken


@pytest.mark.parametrize("frames", [0, 400], ids=["at once", "after many frames"])
def test_the_limit_of_junk_is_inclusive_and_frames_save_none_up(frames: int) -> None:
    good = MP3_FRAMES[1:2] * frames
    framer = SyncFramer(MP3)
    assert frames_of(framer, *good, bytes(MAX_JUNK_BYTES)) == good
    with pytest.raises(InvalidAudio):
        list(framer.feed(b"\0"))


def test_more_junk_than_frames_is_not_endured_for_ever() -> None:
    framer, group = SyncFramer(MP3), bytes(20_000) + b"".join(MP3_FRAMES[:3])
    with pytest.raises(InvalidAudio):
        frames_of(framer, *[group] * 10)


def test_the_first_frame_is_believed_if_the_next_is_of_its_kind() -> None:
    slower = frames_of(SyncFramer(MP3), framed("mp3", LOW, 8_000))
    assert frames_of(SyncFramer(MP3), MP3_FRAMES[0], *slower) == slower


def test_a_frame_alone_is_believed_at_the_end_only() -> None:
    framer = SyncFramer(MP3)
    assert list(framer.feed(MP3_FRAMES[0])) == []
    assert list(framer.feed(b"", end=True)) == MP3_FRAMES[:1]
    assert list(framer.feed(MP3_FRAMES[1])) == MP3_FRAMES[1:2]


def test_a_frame_comes_with_its_last_byte() -> None:
    framer = SyncFramer(ADTS)
    assert list(framer.feed(AAC_FRAMES[0])) == []
    assert list(framer.feed(AAC_FRAMES[1][:7])) == AAC_FRAMES[:1]
    assert list(framer.feed(AAC_FRAMES[1][7:-1])) == []
    assert list(framer.feed(AAC_FRAMES[1][-1:])) == AAC_FRAMES[1:2]


@pytest.mark.parametrize(
    "data",
    [
        b"#!AMR_MC1.0\n",
        b"#!AMR\r\n",
        b"#!AMR-WC",
        b"\x3c" + bytes(31),
        b"#!AMR\n\x4c",
        b"#!AMR\n\x3d",
        b"#!AMR-WB\n\x54",
    ],
    ids=["channels", "line end", "misspelt", "none", "kind", "padding", "kind of WB"],
)
def test_what_is_no_amr_is_refused(data: bytes) -> None:
    framer = AmrFramer()
    with pytest.raises(InvalidAudio):
        frames_of(framer, data)
    assert framer.broken


def test_amr_files_may_follow_one_another() -> None:
    wide = b"#!AMR-WB\n" + b"\x04" + bytes(17)
    framer = AmrFramer()
    assert frames_of(framer, AMR_FILE, wide) == [*AMR_FRAMES, b"\x04" + bytes(17)]
    assert framer.codec == "libopencore_amrwb"
    assert frames_of(framer, AMR_FILE) == AMR_FRAMES
    assert framer.codec == "libopencore_amrnb"


STREAMS = {
    "mp3": id3(40) + MP3_FILE + bytes(50) + MP3_FILE[700:] + ape(20),
    "aac": AAC_FILE[50:] + b"\xff" + AAC_FILE + id3(40) + AAC_FILE,
    "amr": AMR_FILE * 2,
}


@given(name=st.sampled_from(sorted(STREAMS)), cuts=st.lists(st.integers(0, 30_000), max_size=30))
def test_the_cut_does_not_matter(name: str, cuts: list[int]) -> None:
    framers = [AmrFramer() if name == "amr" else SyncFramer(MP3 if name == "mp3" else ADTS) for _ in range(2)]
    whole = frames_of(framers[0], STREAMS[name])
    assert len(whole) > 20
    assert frames_of(framers[1], *cut(STREAMS[name], cuts)) == whole


@given(
    kind=st.sampled_from(["mp3", "aac", "amr"]),
    pieces=st.lists(
        st.builds(
            bytes.__add__,
            st.sampled_from([b"", b"ID3\4\0\0\0\0\0\3", b"APETAGEX", MP3_HEADER, ADTS_HEADER]),
            st.binary(max_size=300),
        ),
        max_size=12,
    ),
)
def test_of_garbage_come_its_own_bytes_or_none(kind: str, pieces: list[bytes]) -> None:
    framer = AmrFramer() if kind == "amr" else SyncFramer(MP3 if kind == "mp3" else ADTS)
    stream = (b"#!AMR\n" if kind == "amr" else b"") + b"".join(pieces)
    try:
        found = frames_of(framer, *cut(stream, range(0, len(stream), 100)))
    except InvalidAudio:
        assert framer.broken
        return
    at = 0
    for frame in found:
        at = stream.index(frame, at) + len(frame)


@pytest.mark.parametrize(
    ("syntax", "data"),
    [
        (MP3, id3(4_000_000)),
        (MP3, ape(4_000_000)),
        (MP3, (bytes(2_000) + b"".join(MP3_FRAMES)) * 200),
        (ADTS, (AAC_FILE + b"\xff\xf1\x50\x83\xff\xff\xfc" * 300) * 500),
    ],
    ids=["tag", "ape", "junk", "long frames"],
)
def test_little_is_kept(syntax: Syntax, data: bytes) -> None:
    framer = SyncFramer(syntax)
    pieces = cut(data, range(0, len(data), 10_000))
    tracemalloc.start()
    try:
        for piece in pieces:
            for _ in framer.feed(piece):
                pass
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
