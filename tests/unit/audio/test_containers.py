import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.audio.containers import Container, begins_ogg, container_of
from support.audio_files import chirp, ogg_opus, wav_bytes

MP4 = b"\0\0\0\x20ftypisom"
HEADS = {
    Container.WAV: wav_bytes(chirp(0.01))[:40],
    Container.OGG: ogg_opus(chirp(0.01))[:40],
    Container.FLAC: b"fLaC\0\0\0\x22",
    Container.MP3: b"ID3\x04\0\0\0\0\x01\x76",
    Container.WEBM: b"\x1aE\xdf\xa3\x01\0\0\0",
    Container.MP4: MP4,
    Container.AMR: b"#!AMR-WB\n",
}


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        *((head, container) for container, head in HEADS.items()),
        (b"", None),
        (b"RIF", None),
        (b"RIFF\x01\x02\x03\x04", None),
        (b"RIFF\x01\x02\x03\x04WAV", None),
        (b"RIFF\x01\x02\x03\x04WAVE", Container.WAV),
        (b"Ogg", None),
        (b"\0\0\0\x20fty", None),
        (b"ID3\x04", None),
        (b"#!AM", None),
        (b"\x01", Container.NONE),
        (b"RIX", Container.NONE),
        (b"RIFF\x01\x02\x03\x04AVI ", Container.NONE),
        (b"RIFF\x01\x02\x03\x04WX", Container.NONE),
        (b"ID3\x04\x01", Container.NONE),
        (b"\xff\xfb\x90\x64", Container.NONE),
        (bytes(8), Container.NONE),
        (b"\0\0\0\x20\0\0ftyp", Container.NONE),
        (b"\0" + HEADS[Container.FLAC], Container.NONE),
    ],
)
def test_a_container_is_known_as_soon_as_it_can_be(head: bytes, answer: Container | None) -> None:
    assert container_of(head) is answer


@given(st.sampled_from(list(HEADS.values())) | st.binary(max_size=20), st.integers(0, 20))
def test_more_bytes_never_change_an_answer(head: bytes, upto: int) -> None:
    early = container_of(head[:upto])
    assert early is None or early is container_of(head)


@given(st.binary(min_size=12))
def test_twelve_bytes_are_enough(head: bytes) -> None:
    assert container_of(head) is not None


def test_only_the_first_page_of_ogg_begins_it() -> None:
    stream = ogg_opus(chirp(0.1))
    assert [begins_ogg(stream[:size]) for size in (4, 5, 6, 40)] == [None, None, True, True]
    assert begins_ogg(stream[stream.index(b"OggS", 1) :]) is False
