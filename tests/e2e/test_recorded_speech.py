"""Recorded speech through Silero and the embedded engine: the text of the realtime door, in bounded memory.

Figures are printed. One run of the services serves all tests, as one server would.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import SAMPLE_RATE, SessionConfig, TurnDetection
from qwen3_asr_server.engines import load_engine
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.messages import AppendAudio, Commit, Event, Final, Finish, UtteranceFailed
from qwen3_asr_server.runtime.media import MediaLimits, open_media
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.join import join_texts
from support import speech
from support.children import descendants
from support.media_files import KINDS, write_media
from support.recorded import MemoryMedia

Record = Callable[[str, object], None]
CLIPS = {name: speech.long_clip(name) for name in ("paragraph_35s", "paragraph_75s", "nonstop_30s")}
CLIPS["conversation"] = speech.conversation()
LONG_S = 600
MOST_MEMORY_MB = 400
MOST_DECODERS = 2
LIVE_SESSIONS = 2
LATEST_FINAL_MS = 5000
"""Generous, as other work may share the machine; a session that waited for the recording would wait for minutes."""
FLAC = next(kind for kind in KINDS if kind.name == "ogg-flac")


@pytest.fixture
async def services() -> AsyncIterator[Services]:
    engine = load_engine("pocketsphinx", EngineOptions(max_decoders=4, decode_timeout_s=60))
    running = Services(Settings(_env_file=None, decode_timeout_s=60), engine=engine)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


async def live(
    services: Services, samples: speech.Samples, *, manual: bool = False, paced: bool = False
) -> list[Event]:
    """Send audio to a realtime session; return what it tells, each final with its latency."""
    events: list[Event] = []
    config = SessionConfig(turn_detection=None if manual else TurnDetection())
    with services.open_session(config, events.append) as session:
        running = asyncio.create_task(session.run())
        size = SAMPLE_RATE // 10
        for at in range(0, len(samples), size):
            await session.room()
            await session.submit(AppendAudio(samples[at : at + size]))
            if paced:
                await asyncio.sleep(0.1)
        if manual:
            await session.submit(Commit())
        await session.submit(Finish())
        await running
    assert not [event for event in events if isinstance(event, UtteranceFailed)]
    return events


def text_of(events: Sequence[Event]) -> str:
    return join_texts([event.text for event in events if isinstance(event, Final)])


@pytest.mark.parametrize(
    ("name", "manual"), [*((name, False) for name in CLIPS), ("paragraph_35s", True), ("conversation", True)]
)
async def test_both_doors_give_the_same_text(
    services: Services, name: str, manual: bool, record_property: Record
) -> None:
    clip = CLIPS[name]
    expected = text_of(await live(services, clip.samples, manual=manual))
    turn = None if manual else TurnDetection()
    began = time.monotonic()
    transcript = await services.transcribe(
        MemoryMedia(clip.samples), TranscribeOptions(words=True, turn_detection=turn)
    )
    rtf = (time.monotonic() - began) / clip.seconds
    assert transcript.text == expected != ""
    assert [word.text for _, word in transcript.words] == transcript.text.split()
    times = [at for _, word in transcript.words for at in (word.start, word.end)]
    assert times == sorted(times)
    error = 100 * speech.wer(clip.text, transcript.text)
    record_property(
        "figure",
        f"{name}{' (Manual)' if manual else ''}: {len(transcript.segments)} segments, WER {error:.1f} %, RTF {rtf:.2f}",
    )


async def test_ten_minutes_beside_live_sessions(services: Services, tmp_path: Path, record_property: Record) -> None:
    clip, spoken = CLIPS["paragraph_75s"], CLIPS["conversation"]
    times = round(LONG_S / clip.seconds)
    path = write_media(tmp_path / "long.ogg", FLAC, np.tile(clip.samples, times)[:, None])
    # As many as later, so that their decoders run already and are not counted as the recording's.
    alone, *others = await asyncio.gather(*(live(services, spoken.samples) for _ in range(LIVE_SESSIONS)))
    idle_mb, peak_mb, decoders = memory_mb(), 0.0, 0

    def watch(done_s: float, total_s: float | None) -> None:
        nonlocal peak_mb, decoders
        peak_mb = max(peak_mb, memory_mb())
        decoders = max(decoders, services.stats()["scheduler"]["recorded_running"])  # type: ignore[index]

    began = time.monotonic()
    async with open_media(path, MediaLimits()) as media, asyncio.TaskGroup() as group:
        recording = group.create_task(services.transcribe(media, TranscribeOptions(words=True), watch))
        beside = await asyncio.gather(*(live(services, spoken.samples, paced=True) for _ in range(LIVE_SESSIONS)))
        beside_done = recording.done()
    transcript = recording.result()
    wall_s = time.monotonic() - began
    assert {text_of(events) for events in [*others, *beside]} == {text_of(alone)} != {""}
    assert not beside_done, "the recording was to be there for the whole sessions"
    assert transcript.duration == len(clip.samples) * times
    assert 1 <= decoders <= MOST_DECODERS
    assert peak_mb - idle_mb < MOST_MEMORY_MB
    assert speech.wer(clip.text * times, transcript.text) < 0.5
    latency = services.stats()["latency"]
    assert isinstance(latency, dict)
    assert latency["final_ms_p95"] < LATEST_FINAL_MS
    record_property(
        "figure",
        f"{LONG_S} s of recording in {wall_s:.0f} s with {LIVE_SESSIONS} live sessions beside: "
        f"{peak_mb - idle_mb:.0f} MB above idle, {decoders} decoders; finals of the sessions after "
        f"{latency['final_ms_p50']} ms (p50), {latency['final_ms_p95']} ms (p95)",
    )


def memory_mb() -> float:
    """Return the memory of this process and of all its children: decoders of speech, and of files."""
    return sum(_resident_mb(str(pid)) for pid in ("self", *descendants(os.getpid())))


def _resident_mb(pid: str) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)
