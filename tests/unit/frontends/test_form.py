"""A form is the same however its bytes are cut, and is stored only once."""

from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.errors import InvalidValue, TooLarge
from qwen3_asr_server.frontends._bodies import Bodies
from qwen3_asr_server.frontends._form import Fields, received
from qwen3_asr_server.frontends._multipart import MAX_FIELDS_BYTES, MAX_PARTS, Multipart
from qwen3_asr_server.runtime.sources import SourceLimits
from qwen3_asr_server.text.hotwords import BEFOREHAND, context_of
from support.raw_request import Sent

BOUNDARY = b"cut"
FILE = b"RIFF\r\n--cu\r\n--cutting\r\n" + bytes(range(256)) * 8


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    return f'--cut\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


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


async def test_a_file_of_another_name_is_refused_before_it_is_read() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield part("audio", FILE, "talk.wav").removesuffix(b"\r\n")
        raise AssertionError("it is read on")

    form = Multipart(BOUNDARY)
    with pytest.raises(InvalidValue, match="Send the recording as `file`"):
        [piece async for piece in form.file_in(endless())]


async def test_a_file_that_a_browser_leaves_out_is_a_field() -> None:
    form = Multipart(BOUNDARY)
    body = part("other", b"", "") + part("file", FILE, "talk.wav") + b"--cut--\r\n"
    assert b"".join([piece async for piece in form.file_in(pieces(body, []))]) == FILE
    assert form.fields == {"other": [""]}


@pytest.mark.parametrize("boundary", [b"", b"a" * 1000])
def test_boundaries_that_separate_nothing(boundary: bytes) -> None:
    with pytest.raises(InvalidValue):
        Multipart(boundary)


async def test_headers_of_parts_are_bounded() -> None:
    form = Multipart(BOUNDARY)
    with pytest.raises(InvalidValue):
        [piece async for piece in form.file_in(pieces(b"--cut\r\nX: " + b"x" * 2_000_000, [1_000_000]))]


def test_fields() -> None:
    fields = Fields({"a": ["x", " TRUE "], "b": [""]})
    assert fields.flag("a")
    assert not fields.flag("b")
    assert not fields.flag("c")
    assert fields.choice("b", ("one", "two")) == "one"
    with pytest.raises(InvalidValue, match="one of: one, two"):
        fields.choice("a", ("one", "two"))


JSON = {"content-type": "application/json"}
PAIRS = {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"x": ' + b"[" * 600 + b"]" * 600 + b"}", JSON),
        (b'{"corpus": ' + b"[" * 900 + b"]" * 900 + b"}" + b" " * 300_000, JSON),
        (b'{"x": [[1]]}', JSON),
        (b'{"x": [' + b"1," * MAX_PARTS + b"1]}", JSON),
        (b'{"corpus": "' + b"x" * 10 + b'", "vocabulary": ["' + b"x" * MAX_FIELDS_BYTES + b'"]}', JSON),
        (b'{"url": "data:,x", "x": "' + b"x" * MAX_FIELDS_BYTES + b'y"}', JSON),
        (b"{" + b",".join(b'"%d": ""' % number for number in range(MAX_PARTS + 1)) + b"}", JSON),
        (b'{"' + b"x" * MAX_FIELDS_BYTES + b'y": ""}', JSON),
        (b"&".join([b"x=1"] * (MAX_PARTS + 1)), PAIRS),
        (b"x" * MAX_FIELDS_BYTES + b"y=", PAIRS),
    ],
)
async def test_fields_that_are_too_deep_or_too_many(body: bytes, headers: dict[str, str]) -> None:
    with pytest.raises((InvalidValue, TooLarge)):
        async with received(Sent(body, **headers), SourceLimits(), Bodies(10_000_000, stall_s=60)) as form:
            context_of({name: form.fields.text(name) for name in BEFOREHAND})


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"url": "' + b"x" * 300_000 + b'", "a": [1, "b", true], "corpus": {"text": "c"}}', JSON),
        (b"url=" + b"%78" * 300_000 + b"&a=1&a=b&a=true&corpus=%7b%22text%22%3a+%22c%22%7d", PAIRS),
    ],
)
async def test_a_large_body_is_read_as_a_small_one(body: bytes, headers: dict[str, str]) -> None:
    async with received(Sent(body, **headers), SourceLimits(), Bodies(10_000_000, stall_s=60)) as form:
        assert form.fields.text("url") == "x" * 300_000
        assert form.fields.all("a") == ["1", "b", "true"]
        assert context_of({"corpus": form.fields.text("corpus")}) == "c"


@pytest.mark.parametrize("text", [b"data:;base64,", b"DATA:audio/wav;base64,"])
async def test_a_file_in_a_data_url_is_stored_and_forgotten(text: bytes) -> None:
    body = b'{"url": "' + text + b64encode(FILE * 200) + b'", "a": 1}'
    async with received(Sent(body, **JSON), SourceLimits(), Bodies(10_000_000, stall_s=60)) as form:
        assert form.fields == Fields({"a": ["1"]})
        assert form.path is not None
        assert form.path.read_bytes() == FILE * 200


async def test_a_door_of_files_reads_no_other_body() -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("it is read")
        yield b""

    exchange = Sent(**JSON)
    exchange.body = unread  # type: ignore[method-assign]
    with pytest.raises(InvalidValue, match="no file"):
        async with received(exchange, SourceLimits(), None):
            pass
