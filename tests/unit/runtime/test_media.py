"""Decoding of files: every format, channels, the file's clock, and what a reader leaves behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen3_asr_server.audio.decoder import StreamDecoder
from qwen3_asr_server.domain import SAMPLE_RATE, AudioFormat, Samples
from qwen3_asr_server.errors import MediaError
from qwen3_asr_server.runtime._media_worker import NICENESS
from qwen3_asr_server.runtime.media import MediaLimits, open_media
from support.audio_files import chirp, tone, wav_bytes
from support.children import PROC, ended_within, media_workers
from support.media_files import KINDS, Kind, delay_and_likeness, read_media, sparse_wav, write_media
from support.tiny_speech import DATA, tiny_clips

LIMITS = MediaLimits()
MKV = Kind("mkv", "matroska", "pcm_s16le", SAMPLE_RATE, video=True)


def stereo(left: Samples, right: Samples) -> Samples:
    return np.stack([left, right], axis=1)


def loudness(samples: Samples, frequency: float) -> float:
    """Return the amplitude of one frequency."""
    at = np.arange(len(samples)) / SAMPLE_RATE
    return float(2 * abs(np.mean(samples * np.exp(-2j * np.pi * frequency * at))))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_every_format_is_read(kind: Kind, tmp_path: Path) -> None:
    written = np.repeat(chirp(3, kind.rate)[:, None], kind.channels, axis=1)
    audio, media = await read_media(write_media(tmp_path / "recording", kind, written), LIMITS)
    assert audio.dtype == np.float32
    assert (media.channels, media.cut_short) == (1, False)
    assert (media.kind.rate, media.kind.channels) == (kind.rate, kind.channels)
    assert media.kind.container
    assert media.kind.codec
    assert media.duration_s is not None
    assert abs(media.duration_s - 3) < 0.15
    assert abs(audio.shape[1] / SAMPLE_RATE - 3) < 0.1
    delay_s, likeness = delay_and_likeness(chirp(3), audio[0])
    assert 0 <= delay_s + 0.01 < 0.06  # some containers do not say what their encoder put in front
    assert likeness > 0.93
    if kind.exact:
        assert np.abs(audio[0] - chirp(3)).max() <= 2.0**-15


@pytest.mark.parametrize("name", ["en-00.awb", "en-00.spx"])
async def test_formats_that_are_only_read(name: str) -> None:
    (clip,) = (clip for clip in tiny_clips() if clip.name == "en-00")
    audio, media = await read_media(DATA / "formats" / name, LIMITS)
    assert not media.cut_short
    delay_s, likeness = delay_and_likeness(clip.samples, audio[0])
    assert abs(delay_s) < 0.06
    assert likeness > 0.75


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("subtype", ["u8", "s16le", "s24le", "f32le", "mulaw"])
async def test_samples_are_those_of_a_live_session(rate: int, subtype: str, tmp_path: Path) -> None:
    file = wav_bytes(stereo(chirp(2.5, rate), tone(300, 2.5, rate)), rate, 2, subtype)  # type: ignore[arg-type]
    (tmp_path / "recording").write_bytes(file)
    audio, _ = await read_media(tmp_path / "recording", LIMITS)
    decoder = StreamDecoder(AudioFormat())
    live = np.concatenate([decoder.decode(file), decoder.flush()])
    assert audio.shape == (1, len(live))
    assert np.abs(audio[0] - live).max() < 1e-6


STEREO = [kind for kind in KINDS if kind.channels == 2 and kind.codec != "vorbis"]
"""Without Vorbis, whose encoder in FFmpeg makes the channels alike."""


@pytest.mark.parametrize("kind", STEREO, ids=lambda kind: kind.name)
async def test_channels_stay_apart_when_asked(kind: Kind, tmp_path: Path) -> None:
    path = write_media(tmp_path / "call", kind, stereo(tone(440, 2, kind.rate), tone(1000, 2, kind.rate)))
    apart, media = await read_media(path, LIMITS, split=True)
    assert media.channels == len(apart) == 2
    assert [loudness(apart[0], hz) > 0.4 for hz in (440, 1000)] == [True, False]
    assert [loudness(apart[1], hz) > 0.4 for hz in (440, 1000)] == [False, True]
    mixed, media = await read_media(path, LIMITS)
    assert media.channels == len(mixed) == 1
    assert np.abs(mixed[0] - apart.mean(axis=0)).max() < 1e-3


@pytest.mark.parametrize(("channels", "split", "rows"), [(1, True, 1), (6, False, 1), (6, True, 6)])
async def test_any_number_of_channels(channels: int, split: bool, rows: int, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_bytes(wav_bytes(tone(440, 1, 48_000), 48_000, channels))
    audio, _ = await read_media(path, LIMITS, split=split)
    assert audio.shape == (rows, SAMPLE_RATE)
    assert min(loudness(row, 440) for row in audio) > 0.49
    with pytest.raises(MediaError, match="channels"):
        await read_media(path, MediaLimits(max_channels=rows - 1), split=split)


@pytest.mark.parametrize(
    ("leap_at_s", "leap_s", "silence_s"),
    [
        pytest.param(0, 1.5, (0, 1.5), id="the audio begins after the video"),
        pytest.param(1, 2, (1, 3), id="nothing was recorded for a while"),
        pytest.param(1, 0.1, (1, 1), id="jitter"),
        pytest.param(1, 7200, (1, 1), id="the clock was set"),
    ],
)
async def test_times_are_those_of_the_file(
    leap_at_s: float, leap_s: float, silence_s: tuple[float, float], tmp_path: Path
) -> None:
    sound = tone(440, 2)
    path = write_media(tmp_path / "recording", MKV, sound[:, None], leap_at_s=leap_at_s, leap_s=leap_s)
    audio, _ = await read_media(path, LIMITS)
    start, end = (round(second * SAMPLE_RATE) for second in silence_s)
    assert abs(audio.shape[1] - len(sound) - (end - start)) < 32
    assert not audio[0, start + 32 : end - 32].any()
    assert loudness(audio[0, end + 32 :], 440) > 0.49
    assert loudness(audio[0, : max(1, start)], 440) > 0.49 or start == 0


async def test_the_whole_file_is_never_in_memory(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    minutes = 20
    path = sparse_wav(tmp_path / "recording", 24_000, minutes * 60)
    before = resident_bytes(os.getpid())
    samples = most_child = 0
    async with open_media(path, LIMITS) as media:
        (child,) = media_workers()
        async for block in media.blocks():
            samples += block.shape[1]
            most_child = max(most_child, resident_bytes(child))
    grown = resident_bytes(os.getpid()) - before
    assert samples == minutes * 60 * SAMPLE_RATE
    assert grown < 16e6
    assert 10e6 < most_child < 150e6
    record_property("figure", f"decoding {minutes} min: server +{grown / 1e6:.0f} MB, child {most_child / 1e6:.0f} MB")


def resident_bytes(pid: int) -> int:
    """Return what a process holds in memory; nothing, once it is gone."""
    try:
        statm = (PROC / str(pid) / "statm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_an_unread_file_is_not_read_ahead(tmp_path: Path) -> None:
    path = sparse_wav(tmp_path / "recording", 16_000, 3600)
    async with open_media(path, LIMITS) as media:
        (child,) = media_workers()
        blocks = media.blocks()
        await anext(blocks)
        async with asyncio.timeout(30):
            while not waits_to_write(child):  # noqa: ASYNC110 - the state of a process is no event
                await asyncio.sleep(0.01)
        at = int((PROC / str(child) / "fdinfo" / "4").read_text().split()[1])
        assert at < 32 * SAMPLE_RATE * 2
        await blocks.aclose()


def waits_to_write(pid: int) -> bool:
    """Tell whether a process stands in a system call on its pipe, which it never reads."""
    return (PROC / str(pid) / "syscall").read_text().split()[1:2] == ["0x3"]


@pytest.mark.parametrize("end", ["at the end", "early", "by an error", "by cancellation", "without a block read"])
async def test_no_process_and_no_handle_stays(end: str, tmp_path: Path) -> None:
    path = sparse_wav(tmp_path / "recording", 16_000, 5 if end == "at the end" else 3600)
    before = open_handles()
    reading = asyncio.Event()

    async def use() -> None:
        async with open_media(path, LIMITS) as media:
            if end == "without a block read":
                return
            async for _ in media.blocks():
                reading.set()
                match end:
                    case "early":
                        return
                    case "by an error":
                        raise LookupError
                    case "by cancellation":
                        await asyncio.Event().wait()

    task = asyncio.create_task(use())
    if end == "by cancellation":
        await reading.wait()
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or isinstance(task.exception(), LookupError | None)
    assert not media_workers()
    assert open_handles() == before


def open_handles() -> int:
    return len(list((PROC / "self" / "fd").iterdir()))


async def test_decoding_makes_way_for_the_server(tmp_path: Path) -> None:
    async with open_media(sparse_wav(tmp_path / "long", SAMPLE_RATE, 3600), LIMITS):
        (child,) = media_workers()
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, child) == min(19, own + NICENESS)


async def test_what_is_typed_in_the_terminal_does_not_reach_the_child(tmp_path: Path) -> None:
    async with open_media(sparse_wav(tmp_path / "recording", SAMPLE_RATE, 600), LIMITS):
        (child,) = media_workers()
        assert os.getsid(child) == child


async def test_the_child_does_not_see_our_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "hush")
    async with open_media(sparse_wav(tmp_path / "recording", 16_000, 600), LIMITS):
        (child,) = media_workers()
        assert b"hush" not in (PROC / str(child) / "environ").read_bytes()


PARENT = """
import asyncio, sys
from collections.abc import Callable
from pathlib import Path
from qwen3_asr_server.runtime.media import MediaLimits, open_media
from support.children import child_processes

async def main():
    async with open_media(Path(sys.argv[1]), MediaLimits()):
        print(*child_processes(), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    path = sparse_wav(tmp_path / "recording", 16_000, 3600)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", PARENT, path], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        assert ended_within(child, 10)
