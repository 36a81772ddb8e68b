"""Files that are broken or mean harm: each costs its own process only, and the reason is said."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.errors import MediaError, TooLarge, TooLong
from qwen3_asr_server.runtime._media_wire import (
    HEADER,
    MAX_BODY_BYTES,
    Ended,
    Fault,
    MediaKind,
    Opened,
    packed,
    parsed,
)
from qwen3_asr_server.runtime.media import MediaLimits, open_media
from support.audio_files import chirp, tone, wav_bytes
from support.children import child_processes, media_workers
from support.media_files import KINDS, read_media, sparse_wav, write_media

LIMITS = MediaLimits()
BY_NAME = {kind.name: kind for kind in KINDS}


def recording(path: Path, name: str, seconds: float = 3) -> Path:
    kind = BY_NAME[name]
    return write_media(path, kind, np.repeat(chirp(seconds, kind.rate)[:, None], kind.channels, axis=1))


def silent_video(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("recording.wav", bytes(10_000_000))


def cut(name: str, share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        whole = recording(path, name).read_bytes()
        path.write_bytes(whole[: round(share * len(whole))])

    return write


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content.encode())


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        pytest.param(text(""), "is empty", id="empty"),
        pytest.param(text("hello " * 1000), "unknown format", id="text"),
        pytest.param(text("<html><body>Sign in</body></html>"), "unknown format", id="a web page"),
        pytest.param(lambda path: path.write_bytes(bytes(100_000)), "unknown format", id="zeros"),
        pytest.param(zipped, "unknown format", id="zip"),
        pytest.param(silent_video, "no audio", id="video without audio"),
        pytest.param(lambda path: path.mkdir(), "no file", id="folder"),
        pytest.param(os.mkfifo, "no file", id="named pipe"),
        pytest.param(lambda path: None, "cannot be opened", id="missing"),
        pytest.param(cut("m4a", 0.5), "unknown format", id="m4a without its index"),
        pytest.param(cut("wav", 0.0003), "unknown format", id="half a wav header"),
        pytest.param(lambda path: sparse_wav(path, 16_000, 0), "no audio", id="wav without samples"),
        pytest.param(
            lambda path: path.write_bytes(wav_bytes(tone(1, 1, 2_000), 2_000)),
            "sampling rate",
            id="a rate below speech",
        ),
    ],
)
async def test_what_cannot_be_read_is_said(write: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    write(path)
    with pytest.raises(MediaError, match=reason) as refused:
        await read_media(path, LIMITS)
    assert str(tmp_path) not in refused.value.message
    assert not media_workers()


@pytest.mark.parametrize("name", ["wav", "wav-24bit", "aiff", "au", "mp3", "flac", "ogg-opus", "webm", "aac", "amr"])
async def test_a_file_that_breaks_off_gives_what_is_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    cut(name, 0.5)(path)
    audio, media = await read_media(path, LIMITS)
    assert 0.9 < audio.shape[1] / SAMPLE_RATE < 2
    told = ("wav", "wav-24bit", "aiff", "au", "flac", "webm")  # where the header says how long it is meant to be
    assert media.cut_short == (name in told)


@pytest.mark.parametrize(
    ("size", "cut_short"),
    [(32_000, False), (36_000, False), (64_000, True), (0, False), (0x7FFF_FFFF, False), (0xFFFF_FFFF, False)],
)
async def test_a_wav_file_is_cut_short_if_its_size_was_known_and_is_not_there(
    size: int, cut_short: bool, tmp_path: Path
) -> None:
    whole = wav_bytes(tone(1, 1, SAMPLE_RATE), SAMPLE_RATE)
    at = whole.index(b"data")
    path = tmp_path / "recording"
    skipped = b"JUNK" + struct.pack("<I", 3) + b"abc\0"  # of odd length, so padded
    path.write_bytes(whole[:at] + skipped + b"data" + struct.pack("<I", size) + whole[at + 8 :])
    audio, media = await read_media(path, LIMITS)
    assert (audio.shape[1], media.cut_short) == (SAMPLE_RATE, cut_short)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n",
    "m3u": "#EXTM3U\n#EXTINF:3,x\n{target}\n",
    "concat": "ffconcat version 1.0\nfile {target}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n",
    "smil": '<smil><body><audio src="{target}"/></body></smil>',
}


@pytest.mark.parametrize("scheme", ["file", "http"])
@pytest.mark.parametrize("playlist", PLAYLISTS)
async def test_playlists_open_nothing(playlist: str, scheme: str, tmp_path: Path) -> None:
    secret = recording(tmp_path / "secret", "wav")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        target = {"file": f"file://{secret}", "http": f"http://127.0.0.1:{port}/secret.wav"}[scheme]
        (tmp_path / "recording").write_text(PLAYLISTS[playlist].format(target=target, port=port))
        with pytest.raises(MediaError):
            await read_media(tmp_path / "recording", LIMITS)
        with pytest.raises(BlockingIOError):
            server.accept()


LOCKED_IN = """
import os, socket, sys, av
from qwen3_asr_server.runtime._media_track import _open
from qwen3_asr_server.runtime._media_wire import Task
from qwen3_asr_server.runtime._media_worker import _lock_in, _rehearse, _take_over_output

answers = _take_over_output()
_rehearse()
_lock_in(Task(False, 1, 60, 2**28, 20, 20))
container = _open()

def refused(attempt):
    try:
        attempt()
    except (OSError, MemoryError):
        return True

attempts = {
    "file": lambda: open("/etc/passwd"),
    "new file": lambda: open("new", "w"),
    "socket": lambda: socket.socket(),
    "pipe": os.pipe,
    "memory": lambda: bytearray(2**28),
    "by ffmpeg": lambda: av.open("/etc/passwd"),
}
answers.write(" ".join(name for name, attempt in attempts.items() if not refused(attempt)).encode() or b"nothing")
"""


def test_the_process_can_open_nothing_more(tmp_path: Path) -> None:
    with recording(tmp_path / "recording", "wav").open("rb") as file:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", LOCKED_IN]
        result = subprocess.run(
            command, check=True, stdin=file, capture_output=True, cwd=tmp_path, env=environment, timeout=60
        )
    assert (result.stdout, result.stderr) == (b"nothing", b"")


def with_huge_duration(path: Path, name: str) -> Path:
    """Write a recording of 3 s that says of itself that it is far longer."""
    data = bytearray(recording(path, name).read_bytes())
    match name:
        case "wav":
            at = data.index(b"data") + 4
            data[4:8] = data[at : at + 4] = struct.pack("<I", 0xFFFF_FFFF)
        case "flac":
            at = 8 + 13  # the 36 bits of the sample count in STREAMINFO
            data[at] |= 0x0F
            data[at + 1 : at + 5] = b"\xff" * 4
        case "m4a":
            for box, skip in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
                at = data.index(box) + skip
                data[at : at + 4] = struct.pack(">I", 0x7FFF_FFFF)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["wav", "flac", "m4a"])
async def test_a_huge_declared_duration_is_not_believed(name: str, tmp_path: Path) -> None:
    audio, media = await read_media(with_huge_duration(tmp_path / "recording", name), LIMITS)
    assert abs(audio.shape[1] / SAMPLE_RATE - 3) < 0.1
    assert media.duration_s is None or abs(media.duration_s - 3) < 0.1


@pytest.mark.parametrize("name", ["wav", "mp3", "ogg-opus", "amr"])
async def test_too_much_audio_is_refused(name: str, tmp_path: Path) -> None:
    path = recording(tmp_path / "recording", name, 5)
    with pytest.raises(TooLong):
        await read_media(path, MediaLimits(max_audio_s=2))
    await read_media(path, MediaLimits(max_audio_s=5))


async def test_too_much_audio_is_noticed_although_undeclared(tmp_path: Path) -> None:
    path = with_huge_duration(tmp_path / "recording", "flac")
    async with open_media(path, MediaLimits(max_audio_s=1)) as media:
        assert media.duration_s is None
        with pytest.raises(TooLong):
            [block async for block in media.blocks()]


async def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    path = sparse_wav(tmp_path / "recording", 16_000, 60)
    with pytest.raises(TooLarge):
        await read_media(path, MediaLimits(max_bytes=path.stat().st_size - 1))
    await read_media(path, MediaLimits(max_bytes=path.stat().st_size))


async def test_processor_time_is_limited(tmp_path: Path) -> None:
    path = sparse_wav(tmp_path / "recording", 48_000, 6 * 3600)
    with pytest.raises(MediaError, match="too long to decode"):
        await read_media(path, MediaLimits(cpu_s=0.01, speed=1e9))


async def test_without_memory_nothing_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        await read_media(recording(tmp_path / "recording", "m4a"), MediaLimits(memory_bytes=100_000))


async def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    async with open_media(sparse_wav(tmp_path / "recording", 16_000, 3600), MediaLimits(stall_s=1)) as media:
        (child,) = media_workers()
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(MediaError, match="cannot be decoded"):
            [block async for block in media.blocks()]
    assert not media_workers()


async def test_a_process_that_crashes_harms_nobody(tmp_path: Path) -> None:
    async with (
        open_media(sparse_wav(tmp_path / "one", 16_000, 3600), LIMITS) as one,
        asyncio.timeout(60),
    ):
        (child,) = media_workers()
        async with open_media(recording(tmp_path / "two", "wav"), LIMITS) as two:
            os.kill(child, signal.SIGSEGV)
            with pytest.raises(MediaError, match="cannot be decoded"):
                [block async for block in one.blocks()]
            assert sum([block.shape[1] async for block in two.blocks()]) == 3 * SAMPLE_RATE


TAKEN_OVER = """
import signal, sys
sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))
sys.stdout.flush()
signal.pause()
"""
"""A decoding process in which a file has its way."""


@pytest.mark.parametrize(
    "said",
    [
        packed(bytes(8)),
        packed(Ended(False)),
        HEADER.pack(9, 0),
        HEADER.pack(1, MAX_BODY_BYTES + 1),
        packed(Opened(1, None)) * 2,
        packed(Opened(1, None)) + packed(b""),
        packed(Opened(2, None)) + packed(bytes(12)),
        packed(Opened(1, None)) + HEADER.pack(1, MAX_BODY_BYTES + 1),
    ],
    ids=["audio", "end", "nonsense", "too long", "opened twice", "nothing", "half a sample", "opened and too long"],
)
async def test_a_process_that_says_something_else_is_ended_at_once(
    said: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = (sys.executable, "-IS", "-c", TAKEN_OVER, said.hex())
    monkeypatch.setattr("qwen3_asr_server.runtime.media.WORKER", worker)
    before = child_processes()
    async with asyncio.timeout(LIMITS.stall_s / 2):
        with pytest.raises(MediaError, match="cannot be decoded"):
            await read_media(recording(tmp_path / "recording", "wav"), LIMITS)
    assert child_processes() <= before


SEEDS = ("wav", "mp3", "m4a", "flac", "ogg-opus", "webm", "amr", "mp4-video")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with short recordings."""
    folder = tmp_path_factory.mktemp("seeds")
    for name in SEEDS:
        recording(folder / name, name, 0.5)
    return folder


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=12),
    length=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_files_give_audio_or_a_reason(
    name: str, changes: list[tuple[float, bytes]], length: float, seeds: Path, tmp_path: Path
) -> None:
    data = bytearray((seeds / name).read_bytes())
    for place, value in changes:
        at = int(place * len(data))
        data[at : at + len(value)] = value
    (tmp_path / "recording").write_bytes(data[: int(length * len(data))])
    try:
        audio, media = asyncio.run(read_media(tmp_path / "recording", MediaLimits(max_audio_s=60), split=True))
    except (MediaError, TooLong):
        pass
    else:
        assert audio.dtype == np.float32
        assert len(audio) == media.channels
        assert np.isfinite(audio).all()
        assert np.abs(audio).max(initial=0) <= 1
    assert not media_workers()


KIND = MediaKind("wav", "pcm_s16le", 8000, 2)
KIND_AS_JSON = json.dumps(asdict(KIND)).encode()


@pytest.mark.parametrize("message", [Opened(2, 1.5, KIND), Opened(1, None), b"audio", b"", Ended(True), *Fault])
def test_messages_arrive_as_they_were_sent(message: Opened | Ended | Fault | bytes) -> None:
    data = packed(message)
    kind, length = HEADER.unpack(data[: HEADER.size])
    assert length == len(data) - HEADER.size
    assert parsed(kind, data[HEADER.size :]) == message


@given(st.integers(0, 255), st.binary(max_size=40))
def test_a_message_that_makes_no_sense_is_a_value_error(kind: int, body: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(parsed(kind, body), Opened | Ended | Fault | bytes)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (0, b"{"),
        (0, b"\xff"),
        (0, b"[]"),
        (0, b'{"channels": 1, "duration_s": null}'),
        (0, b'{"channels": 1, "duration_s": null, "kind": {}}'),
        (0, b'{"channels": 0, "duration_s": null, "kind": %s}' % KIND_AS_JSON),
        (0, b'{"channels": 1, "duration_s": "1", "kind": %s}' % KIND_AS_JSON),
        (2, b""),
        (3, b""),
        (3, b"\xff"),
        (3, b"\0\0"),
        (4, b""),
    ],
)
def test_such_messages_are_refused(kind: int, body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the kind of error is the point
        parsed(kind, body)
