import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.audio.ogg import OggPage, OggReader
from qwen3_asr_server.errors import InvalidAudio
from support.audio_files import cut

CONTINUED, FIRST, LAST = 1, 2, 4


def page(lacing: list[int], flags: int = 0, granule: int = 0, serial: int = 1, fill: int = 0x61) -> bytes:
    """A page whose segments are filled with one byte value."""
    header = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, 0, 0, len(lacing))
    return header + bytes(lacing) + bytes([fill]) * sum(lacing)


def test_lacing_makes_packets() -> None:
    pages = list(OggReader().feed(page([3, 255, 255, 1, 0, 255, 0], FIRST, granule=7)))
    assert pages == [OggPage((b"aaa", b"a" * 511, b"", b"a" * 255), 7, first=True, last=False)]


def test_a_packet_may_span_pages() -> None:
    stream = page([2], FIRST) + page([255, 255], granule=-1, fill=0x62) + page([9, 1], CONTINUED | LAST, 5, fill=0x63)
    assert list(OggReader().feed(stream)) == [
        OggPage((b"aa",), 0, first=True, last=False),
        OggPage((), -1, first=False, last=False),
        OggPage((b"b" * 510 + b"c" * 9, b"c"), 5, first=False, last=True),
    ]


def test_a_packet_that_is_not_continued_is_lost() -> None:
    pages = OggReader().feed(page([255], FIRST) + page([4], fill=0x62))
    assert [packet for page in pages for packet in page.packets] == [b"bbbb"]


def test_other_streams_are_passed_over_until_one_begins() -> None:
    stream = page([1], FIRST, serial=1) + page([2], serial=2) + page([3], FIRST, serial=3) + page([4], serial=1)
    assert [page.packets for page in OggReader().feed(stream)] == [(b"a",), (b"aaa",)]


def test_only_the_head_of_an_endless_packet_is_kept() -> None:
    reader = OggReader()
    (first,) = reader.feed(page([255] * 255, FIRST))
    for _ in range(100):
        assert [middle.packets for middle in reader.feed(page([255] * 255, CONTINUED))] == [()]
    (last,) = reader.feed(page([1], CONTINUED))
    assert first.packets == ()
    assert 128 * 1024 <= len(last.packets[0]) < 129 * 1024


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (page([1]), "does not begin at its beginning"),
        (page([1], FIRST) + b"Oops", "damaged"),
        (page([1], FIRST) + b"OggS\x01", "damaged"),
        (b"x", "damaged"),
    ],
    ids=["no first page", "lost boundary", "unknown version", "no Ogg"],
)
def test_what_is_no_ogg_is_refused(stream: bytes, message: str) -> None:
    reader = OggReader()
    with pytest.raises(InvalidAudio, match=message):
        list(reader.feed(stream))
    assert reader.broken
    with pytest.raises(InvalidAudio):
        list(reader.feed(b""))


@given(
    pages=st.lists(
        st.tuples(st.lists(st.sampled_from([0, 1, 7, 254, 255]), max_size=6), st.integers(0, 7), st.integers(1, 2)),
        max_size=5,
    ),
    cuts=st.lists(st.integers(0, 3_000)),
)
def test_the_cut_does_not_matter(pages: list[tuple[list[int], int, int]], cuts: list[int]) -> None:
    stream = page([1], FIRST) + b"".join(page(lacing, flags, serial=serial) for lacing, flags, serial in pages)
    reader = OggReader()
    assert [page for piece in cut(stream, cuts) for page in reader.feed(piece)] == list(OggReader().feed(stream))


@given(st.lists(st.binary(max_size=80)))
def test_garbage_is_refused_cleanly(pieces: list[bytes]) -> None:
    reader = OggReader()
    with suppress(InvalidAudio):
        for piece in pieces:
            assert len(list(reader.feed(b"OggS\0" + piece))) <= 3
