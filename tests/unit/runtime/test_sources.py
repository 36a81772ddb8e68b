"""Where recordings come from: uploads, data URLs, a real web server, folders; and that nothing is left behind."""

import asyncio
import base64
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.errors import (
    AsrServerError,
    ClientError,
    IdleTimeout,
    InvalidValue,
    Overloaded,
    SourceRefused,
    SourceUnreachable,
    TooLarge,
)
from qwen3_asr_server.runtime import sources
from qwen3_asr_server.runtime._addresses import Address
from qwen3_asr_server.runtime._download import WebLimits
from qwen3_asr_server.runtime.media import MediaLimits
from qwen3_asr_server.runtime.sources import (
    DataUrl,
    ServerPath,
    Source,
    SourceLimits,
    StoredUpload,
    Unpacked,
    Upload,
    WebUrl,
    fetched,
    source_of,
    unpacked,
)
from support.audio_files import tone, wav_bytes
from support.children import PROC
from support.media_files import read_media
from support.web_server import ok, redirect, web_server

LIMITS = SourceLimits(max_bytes=10_000, upload_stall_s=5)
LOCAL = replace(LIMITS, web=WebLimits(trusted_networks=(ip_network("127.0.0.1"),), stall_s=5, total_s=20))
CONTENT = bytes(range(256)) * 20


async def bytes_of(source: Source, limits: SourceLimits = LIMITS) -> bytes:
    async with fetched(source, limits) as path:
        return path.read_bytes()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def base64_url(data: bytes) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(data).decode()}"


def open_handles() -> set[str]:
    return {str(handle.readlink()) for handle in (PROC / "self" / "fd").iterdir() if handle.exists()}


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where temporary files would lie."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# Uploads and data URLs


@pytest.mark.parametrize("parts", [(), (b"",), (CONTENT,), (CONTENT[:1], CONTENT[1:17], b"", CONTENT[17:])])
async def test_an_upload_is_stored_as_it_came(parts: tuple[bytes, ...]) -> None:
    assert await bytes_of(Upload(chunks(*parts))) == b"".join(parts)


async def test_a_large_upload_is_stored_in_pieces() -> None:
    part = os.urandom(300_000)
    assert await bytes_of(Upload(chunks(*[part] * 20)), replace(LIMITS, max_bytes=6_000_000)) == part * 20


@pytest.mark.parametrize("size", [9_999, 10_000])
async def test_the_limit_itself_is_allowed(size: int) -> None:
    assert len(await bytes_of(Upload(chunks(bytes(size))))) == size
    assert len(await bytes_of(DataUrl(base64_url(bytes(size))))) == size


@pytest.mark.parametrize("source", [Upload(chunks(bytes(9_000), bytes(1_001))), DataUrl(base64_url(bytes(10_001)))])
async def test_more_than_the_limit_is_refused(source: Source) -> None:
    with pytest.raises(TooLarge):
        await bytes_of(source)


async def test_an_upload_that_stops_is_ended() -> None:
    async def stopping() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    with pytest.raises(IdleTimeout):
        await bytes_of(Upload(stopping()), replace(LIMITS, upload_stall_s=0.05))


async def test_an_upload_of_a_byte_now_and_then_is_ended_too() -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    with pytest.raises(IdleTimeout):
        await bytes_of(Upload(drip()), replace(LIMITS, max_bytes=10**9, upload_s=0.2))


@settings(max_examples=60)
@given(
    st.binary(max_size=500), st.sampled_from(["standard", "url-safe", "unpadded", "wrapped", "quoted", "not base64"])
)
def test_data_urls_of_every_dialect(data: bytes, dialect: str) -> None:
    plain = base64.b64encode(data).decode()
    text = {
        "standard": plain,
        "url-safe": base64.urlsafe_b64encode(data).decode(),
        "unpadded": plain.rstrip("="),
        "wrapped": "\n".join(plain[at : at + 76] for at in range(0, len(plain), 76)),
        "quoted": quote(plain, safe=""),
        "not base64": quote(data),
    }[dialect]
    head = "data:audio/wav" + (";base64" if dialect != "not base64" else "")
    assert asyncio.run(bytes_of(DataUrl(f"{head},{text}"))) == data


@pytest.mark.parametrize(
    "url",
    [
        "data:audio/wav;base64",
        "data:;base64,A",
        "data:;base64,A=B=",
        "data:;base64,ÄÖ",
        "data:,\ud800",
        "data:;base64,A*==",
    ],
)
async def test_other_data_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidValue):
        await bytes_of(DataUrl(url))


@pytest.mark.parametrize("end", ["", "=", "==", "\n", " = = =\n"])
@pytest.mark.parametrize("size", [3_000_000, 3_000_001, 3_000_002])
async def test_a_long_data_url_is_decoded_in_pieces(size: int, end: str) -> None:
    data = os.urandom(size)
    text = base64_url(data).rstrip("=")
    wrapped = "\n".join(text[at : at + 77] for at in range(0, len(text), 77))
    assert await bytes_of(DataUrl(wrapped + end), replace(LIMITS, max_bytes=len(data))) == data


async def test_what_a_data_url_held_is_there_without_it() -> None:
    url = DataUrl(base64_url(CONTENT))
    async with AsyncExitStack() as files:
        source = await unpacked(url, LIMITS, files)
        assert isinstance(source, Unpacked)
        assert await bytes_of(source) == await bytes_of(source) == CONTENT
        web = WebUrl("http://example.com/")
        assert await unpacked(web, LIMITS, files) is web


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("data:,x", DataUrl("data:,x")),
        ("DATA:,x", DataUrl("DATA:,x")),
        ("http://a/b", WebUrl("http://a/b")),
        ("HTTPS://a/b", WebUrl("HTTPS://a/b")),
        ("/a/b", ServerPath("/a/b")),
        ("file:///a/b%20c", ServerPath("/a/b c")),
        ("file://localhost/a", ServerPath("/a")),
        ("oss://a/b c", StoredUpload("a/b c")),
    ],
)
def test_a_string_names_a_source(text: str, source: Source) -> None:
    assert source_of(text) == source


@pytest.mark.parametrize(
    "text", ["", "a.wav", "../a.wav", "ftp://a/b", "file://host/a", "oss:/a/b", "javascript:1", "http", "file://[::"]
)
def test_other_strings_name_none(text: str) -> None:
    with pytest.raises(InvalidValue):
        source_of(text)


# URLs


async def test_a_url_is_fetched() -> None:
    async with web_server() as server:
        server.answers["/a%20b?x=%C3%BC"] = ok(CONTENT)
        assert await bytes_of(WebUrl(server.url("/a b?x=ü#part")), LOCAL) == CONTENT
        head = server.requests[0].lower()
        assert f"host: 127.0.0.1:{server.port}" in head
        assert "accept-encoding: identity" in head
        assert "cookie" not in head
        assert "authorization" not in head


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"])
async def test_this_machine_is_refused_unless_trusted(host: str) -> None:
    async with web_server() as server:
        server.answers["/"] = ok(CONTENT)
        with pytest.raises(SourceRefused) as refused:
            await bytes_of(WebUrl(server.url("/", host)), LIMITS)
        assert "127" not in refused.value.message
        assert not server.requests


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(status: int) -> None:
    async with web_server() as server:
        server.answers |= {"/a/1": redirect("2", status), "/a/2": redirect(server.url("/b"), status), "/b": ok(CONTENT)}
        assert await bytes_of(WebUrl(server.url("/a/1")), LOCAL) == CONTENT


async def public_name(host: str, port: int) -> Sequence[Address]:
    """Resolve as a name server under a stranger's rule may."""
    return [ip_address({"trusted.example": "127.0.0.1", "inside.example": "127.0.0.2"}.get(host, host))]


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/secret",
        "http://inside.example:{port}/secret",
        "//inside.example:{port}/secret",
        "http://[::1]:{port}/secret",
        "http://169.254.169.254/latest/meta-data/",
        "http://user:pass@127.0.0.1:{port}/secret",
    ],
)
async def test_a_redirect_to_a_refused_address_is_refused(target: str) -> None:
    async with web_server() as server:
        server.answers |= {"/": redirect(target.format(port=server.port)), "/secret": ok(CONTENT)}
        limits = replace(LOCAL, web=replace(LOCAL.web, resolver=public_name))
        with pytest.raises(SourceRefused):
            await bytes_of(WebUrl(server.url("/", "trusted.example")), limits)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "http://", "http://[::", "http:////["]
)
async def test_a_redirect_to_another_scheme_is_not_followed(target: str) -> None:
    async with web_server() as server:
        server.answers["/"] = redirect(target)
        with pytest.raises((InvalidValue, SourceUnreachable)):
            await bytes_of(WebUrl(server.url("/")), LOCAL)


@pytest.mark.parametrize(("count", "reached"), [(5, True), (6, False)])
async def test_redirects_are_counted(count: int, reached: bool) -> None:
    async with web_server() as server:
        server.answers |= {f"/{number}": redirect(f"/{number - 1}") for number in range(1, count + 1)}
        server.answers["/0"] = ok(CONTENT)
        fetching = bytes_of(WebUrl(server.url(f"/{count}")), LOCAL)
        if reached:
            assert await fetching == CONTENT
        else:
            with pytest.raises(SourceUnreachable, match="redirected too often"):
                await fetching


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"3e8\r\n" + bytes(1000) + b"\r\n")
        await writer.drain()


async def dripping(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def silent(writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("answer", "error", "status"),
    [
        pytest.param(ok(bytes(10_001)), TooLarge, None, id="too large, as it says"),
        pytest.param(endless, TooLarge, None, id="too large, without saying so"),
        pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", SourceUnreachable, 404, id="404"),
        pytest.param(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", SourceUnreachable, 403, id="403"),
        pytest.param(b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx", SourceUnreachable, 206, id="a part"),
        pytest.param(
            b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", SourceUnreachable, 302, id="a redirect nowhere"
        ),
        pytest.param(ok(b"x", "Content-Encoding: gzip"), SourceUnreachable, None, id="compressed"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", SourceUnreachable, None, id="broken off"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx",
            SourceUnreachable,
            None,
            id="a length of 5000 digits",
        ),
        pytest.param(b"no http at all\r\n\r\n", SourceUnreachable, None, id="no http"),
        pytest.param(b"", SourceUnreachable, None, id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + bytes(b"x" * 300_000), SourceUnreachable, None, id="an endless head"),
    ],
)
async def test_bad_answers_have_a_reason(answer: object, error: type[AsrServerError], status: int | None) -> None:
    async with web_server() as server:
        server.answers["/"] = answer  # type: ignore[assignment]
        with pytest.raises(error) as refused:
            await bytes_of(WebUrl(server.url("/")), LOCAL)
        assert getattr(refused.value, "status", None) == status
        assert str(server.port) not in refused.value.message


@pytest.mark.parametrize(
    ("answer", "web"),
    [
        pytest.param(silent, replace(LOCAL.web, stall_s=0.1), id="no answer"),
        pytest.param(dripping, replace(LOCAL.web, total_s=0.2), id="a byte now and then"),
    ],
)
async def test_slow_servers_are_given_up(answer: object, web: WebLimits) -> None:
    async with web_server() as server:
        server.answers["/"] = answer  # type: ignore[assignment]
        with pytest.raises(SourceUnreachable, match="too long"):
            await bytes_of(WebUrl(server.url("/")), replace(LOCAL, web=web))


async def test_a_name_that_is_looked_up_without_end_is_given_up() -> None:
    async def unanswered(host: str, port: int) -> Sequence[Address]:
        await asyncio.Event().wait()
        return []

    web = replace(LOCAL.web, connect_s=0.05, resolver=unanswered)
    async with asyncio.timeout(5):
        with pytest.raises(SourceUnreachable, match="too long"):
            await bytes_of(WebUrl("http://nowhere.example/"), replace(LOCAL, web=web))


async def test_a_closed_port_is_unreachable() -> None:
    async with web_server() as server:
        pass
    with pytest.raises(SourceUnreachable):
        await bytes_of(WebUrl(server.url("/")), LOCAL)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "http://a b/",
        "http://a:b/",
        "http://[::1",
        "http://\0/",
        "http://a/\ud800",
        "http://127.0.0.1:65536/",
        "https://" + "x" * 9000,
    ],
)
async def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises((InvalidValue, SourceUnreachable)):
        await bytes_of(WebUrl(url), replace(LIMITS, web=replace(LIMITS.web, resolver=nowhere)))


async def nowhere(host: str, port: int) -> Sequence[Address]:
    return []


async def test_a_password_in_a_url_is_refused() -> None:
    with pytest.raises(SourceRefused):
        await bytes_of(WebUrl("http://user:secret@127.0.0.1/"), LOCAL)


@settings(max_examples=150)
@given(
    st.sampled_from(
        [
            "",
            "http://",
            "https://",
            "http://[",
            "http://a.example/",
            "file://",
            "file:///",
            "data:",
            "data:;base64,",
            "/",
        ]
    ),
    st.text(st.characters(exclude_categories=()), max_size=30),
)
def test_whatever_a_client_names_has_a_reason(start: str, rest: str) -> None:
    limits = replace(LIMITS, web=replace(LIMITS.web, resolver=nowhere), roots=(Path(__file__).parent,))
    with suppress(ClientError):
        assert asyncio.run(bytes_of(source_of(start + rest), limits)) is not None


# Folders of this machine


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a recording, and with ways out of it."""
    root = tmp_path / "recordings"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.wav").write_bytes(CONTENT)
    (root / "deep" / "er" / "ä b.wav").write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "recordings-of-others").mkdir()
    (tmp_path / "recordings-of-others" / "a.wav").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "link-inside").symlink_to(root / "a.wav")
    (root / "folder-link").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize("name", ["a.wav", "deep/er/ä b.wav", "deep/./er/ä b.wav", "deep//er/ä b.wav"])
async def test_a_file_under_a_root_is_read(name: str, root: Path) -> None:
    before = open_handles()
    for path in (f"{root}/{name}", f"file://{quote(f'{root}/{name}')}"):
        assert await bytes_of(source_of(path), replace(LIMITS, roots=(root.parent / "other", root))) == CONTENT
    assert open_handles() <= before


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "deep/../../secret", "deep/../a.wav", "../recordings-of-others/a.wav", "../recordings/a.wav"),
        *("link", "link-inside", "folder-link/secret", "folder-link/recordings/a.wav", "pipe", "deep", "", "a.wav/x"),
        "a.wav\0.mp3",
        "\ud800",
    ],
)
async def test_ways_out_of_a_root_are_refused(name: str, root: Path) -> None:
    before = open_handles()
    with pytest.raises(SourceRefused) as refused:
        await bytes_of(ServerPath(f"{root}/{name}"), replace(LIMITS, roots=(root,)))
    assert str(root) not in refused.value.message
    assert open_handles() <= before


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/dev/zero", "/proc/self/environ", "{root}-of-others/a.wav", "{root}/a.wav"]
)
async def test_paths_under_no_root_are_refused(path: str, root: Path) -> None:
    for roots in ((), (root / "deep",)):
        with pytest.raises(SourceRefused):
            await bytes_of(ServerPath(path.format(root=root)), replace(LIMITS, roots=roots))


async def test_a_missing_file_under_a_root_is_unreachable(root: Path) -> None:
    with pytest.raises(SourceUnreachable):
        await bytes_of(ServerPath(f"{root}/b.wav"), replace(LIMITS, roots=(root,)))


async def test_a_file_over_the_limit_is_refused(root: Path) -> None:
    with pytest.raises(TooLarge):
        await bytes_of(ServerPath(f"{root}/a.wav"), replace(LIMITS, roots=(root,), max_bytes=len(CONTENT) - 1))


async def test_what_was_checked_is_what_is_read(root: Path) -> None:
    async with fetched(ServerPath(f"{root}/a.wav"), replace(LIMITS, roots=(root,))) as path:
        (root / "a.wav").unlink()
        (root / "a.wav").symlink_to(root.parent / "secret")
        assert path.read_bytes() == CONTENT


# What stays


@pytest.mark.parametrize("end", ["success", "error", "cancellation", "too large", "cancellation while fetching"])
async def test_nothing_is_left_behind(end: str, scratch: Path) -> None:
    before = open_handles()
    started = asyncio.Event()

    async def coming() -> AsyncIterator[bytes]:
        yield bytes(5_000)
        started.set()
        if end == "cancellation while fetching":
            await asyncio.Event().wait()
        yield bytes(6_000 if end == "too large" else 1)

    async def use() -> None:
        async with fetched(Upload(coming()), LIMITS) as path:
            assert path.stat().st_size == 5_001
            assert is_empty(scratch)  # it has no name, so that a kill leaves nothing either
            match end:
                case "error":
                    raise LookupError
                case "cancellation":
                    await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await started.wait()
    if end.startswith("cancellation"):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    expected = {"error": LookupError, "too large": TooLarge}.get(end)
    assert task.cancelled() if end.startswith("cancellation") else type(task.exception()) is (expected or type(None))
    assert open_handles() == before
    assert is_empty(scratch)


async def test_a_disk_that_takes_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(Overloaded):
        await bytes_of(Upload(chunks(b"x")))


@pytest.mark.parametrize("size", [1, 5_000])
async def test_a_disk_that_becomes_full_is_said(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    with pytest.raises(Overloaded, match="no room"):
        await bytes_of(Upload(chunks(bytes(size))))


async def test_every_source_can_be_decoded(root: Path) -> None:
    wav = wav_bytes(tone(440, 0.5))
    (root / "a.wav").write_bytes(wav)
    limits = replace(LOCAL, max_bytes=len(wav), roots=(root,))
    async with web_server() as server:
        server.answers["/"] = ok(wav)
        sources: list[Source] = [
            *(Upload(chunks(wav)), DataUrl(base64_url(wav)), WebUrl(server.url("/")), ServerPath(f"{root}/a.wav"))
        ]
        for source in sources:
            async with fetched(source, limits) as path:
                audio, _ = await read_media(path, MediaLimits())
                assert audio.shape == (1, 8_000)


@pytest.mark.parametrize("source", [DataUrl("data:,words"), ServerPath("/a")], ids=["stored", "opened"])
async def test_who_leaves_while_a_file_is_opened_leaves_none_open(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    file = (tmp_path / "file").open("w+b")

    def slowly(*_: object) -> BinaryIO:
        began.set()
        go_on.wait(10)
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", slowly)
    monkeypatch.setattr(sources, "_opened", slowly)
    leaving = asyncio.create_task(bytes_of(source))
    await asyncio.to_thread(began.wait)
    leaving.cancel()
    await asyncio.wait({leaving})
    assert (leaving.cancelled(), file.closed) == (True, False)
    go_on.set()
    async with asyncio.timeout(10):
        while not file.closed:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
