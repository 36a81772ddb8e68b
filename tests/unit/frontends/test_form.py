"""A form is the same however its bytes are cut, and is stored only once."""

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.frontends._form import Fields
from qwen3_asr_server.frontends._multipart import Multipart

BOUNDARY = b"cut"
FILE = b"RIFF\r\n--cu\r\n--cutting\r\n" + bytes(range(256)) * 8


def part(name: str, value: bytes) -> bytes:
    return b'--cut\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + value + b"\r\n"


WHOLE = part("language", "汉语".encode()) + part("file", FILE) + part("x", b"1") + part("x", b"") + b"--cut--\r\n"


async def pieces(content: bytes, cuts: Sequence[int]) -> AsyncIterator[bytes]:
    places = sorted({0, len(content), *cuts})
    for first, last in pairwise(places):
        yield content[first:last]


@given(cuts=st.lists(st.integers(1, len(WHOLE) - 1), max_size=40))
async def test_the_cuts_do_not_matter(cuts: list[int]) -> None:
    form = Multipart(BOUNDARY)
    file = b"".join([piece async for piece in form.file_in(pieces(WHOLE, cuts))])
    assert form.has_file
    assert file == FILE
    assert form.fields == {"language": ["汉语"], "x": ["1", ""]}


@given(end=st.integers(0, len(WHOLE) - 5))
async def test_a_form_that_breaks_off_is_none(end: int) -> None:
    form = Multipart(BOUNDARY)
    with pytest.raises(InvalidValue, match="breaks off"):
        [piece async for piece in form.file_in(pieces(WHOLE[:end], []))]


@given(noise=st.binary(max_size=200))
async def test_noise_is_an_error_of_the_client(noise: bytes) -> None:
    form = Multipart(BOUNDARY)
    with pytest.raises(InvalidValue):
        [piece async for piece in form.file_in(pieces(b"--cut\r\n" + noise, []))]


@pytest.mark.parametrize("boundary", [b"", b"a" * 1000])
def test_boundaries_that_separate_nothing(boundary: bytes) -> None:
    with pytest.raises(InvalidValue):
        Multipart(boundary)


def test_fields() -> None:
    fields = Fields({"a": ["x", " TRUE "], "b": [""]})
    assert fields.flag("a")
    assert not fields.flag("b")
    assert not fields.flag("c")
    assert fields.choice("b", ("one", "two")) == "one"
    with pytest.raises(InvalidValue, match="one of: one, two"):
        fields.choice("a", ("one", "two"))
