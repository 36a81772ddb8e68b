"""The engine under load and after accidents: many clips, an hour in one item, a full KV cache, a core that dies."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import soxr

from qwen3_asr_server.domain import (
    GRID_SAMPLES,
    SAMPLE_RATE,
    Hypothesis,
    Samples,
    SessionConfig,
    StepKind,
    StreamOptions,
)
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._vllm_stream import VllmStream
from qwen3_asr_server.engines.vllm import VllmEngine
from qwen3_asr_server.errors import EngineCrashed
from qwen3_asr_server.messages import AppendBytes, Commit, Event, Final, Finish, Finished
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.live import LiveOptions, LiveSession, Workers
from qwen3_asr_server.runtime.scheduler import SchedulerOptions, StepScheduler
from qwen3_asr_server.runtime.telemetry import Latencies
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.vad import load_vad
from qwen3_asr_server.vad._batcher import VadBatcher
from support.children import descendants
from support.speech import pcm16
from support.tiny_speech import CHECKPOINT, long_audio, on_grid, tiny_clips, varied_audio
from support.whole_clip import stream_through

pytestmark = pytest.mark.asyncio(loop_scope="session")

PLAIN = StreamOptions()
ITEM_S = float(os.environ.get("MANUAL_ITEM_S", "600"))
"""Length of the Manual item, in seconds; an hour takes some minutes: `MANUAL_ITEM_S=3600 make test-vllm`."""
SMALL_KV = EngineOptions(str(CHECKPOINT), "float", decode_timeout_s=60, kv_cache_bytes=12 << 20)
"""8,192 tokens of this checkpoint: room for eleven pieces of 27 s, and for the longest prompt, which vLLM asks for."""
Record = Callable[[str, object], None]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small() -> AsyncIterator[VllmEngine]:
    """An engine of its own with small caches, for tests that fill them or kill it."""
    made = VllmEngine(SMALL_KV, vllm_arguments={"mm_processor_cache_gb": 0.01})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8")  # 1024 kernels, one a shape: 200 MB after an hour
        await made.start()
    yield made
    await made.stop()


async def fresh(engine: VllmEngine, audio: Samples) -> VllmStream:
    stream = VllmStream(replace(engine.tools, verify=False), None, "")
    await stream.step(audio, StepKind.FINAL)
    await stream.close()
    return stream


async def test_verified_finals_are_fresh_finals_of_two_hundred_clips(
    engine: VllmEngine, record_property: Record
) -> None:
    async def differs(audio: Samples) -> tuple[float, str, str] | None:
        verified = engine.open_stream(PLAIN)
        await stream_through(verified, audio, 20 * GRID_SAMPLES)
        wanted = (await fresh(engine, audio)).answer
        if verified.answer == wanted:
            return None
        return len(audio) / SAMPLE_RATE, engine.tools.decode(wanted), engine.tools.decode(verified.answer)

    audios = list(varied_audio(200))
    before = replace(engine.core.counters)
    eights = [audios[at : at + 8] for at in range(0, len(audios), 8)]
    found = [one for eight in eights for one in await asyncio.gather(*map(differs, eight))]
    counters = engine.core.counters
    verified, corrected = counters.verified - before.verified, counters.corrected - before.corrected
    different = [one for one in found if one is not None]
    seconds = sum(map(len, audios)) / SAMPLE_RATE
    record_property("figure", f"{seconds:.0f} s, {verified} drafts, {corrected} corrected; different: {different}")
    assert len({audio.tobytes() for audio in audios}) == 200
    assert corrected > 20, "hardly a draft was wrong, so nothing was tested"
    assert not different


async def test_a_hundred_sessions_encode_each_closed_window_once(engine: VllmEngine, record_property: Record) -> None:
    """Interleaved, of distinct speech, finals included. Each begins with a loud tone, so that no floor rises later."""
    speeds = np.linspace(0.95, 1.05, 100)
    whole = islice(long_audio(17.5), 100)
    audios = [on_grid(soxr.resample(audio, speed, 1.0)) for audio, speed in zip(whole, speeds, strict=True)]
    # A last window of exactly 8 s is still open (its end is not heard yet) and would look like a closed one.
    audios = [audio if len(audio) % 128_000 else audio[:-GRID_SAMPLES] for audio in audios]
    for audio in audios:
        audio[:GRID_SAMPLES] = 0.9 * np.sin(2 * np.pi * 1000 * np.arange(GRID_SAMPLES) / SAMPLE_RATE)
    assert len({audio.tobytes() for audio in audios}) == 100
    await engine.core.vllm.collective_rpc("count_windows")
    streams = [engine.open_stream(PLAIN) for _ in audios]
    for units in range(30, 200, 30):
        steps = [s.step(a[: units * GRID_SAMPLES], StepKind.PARTIAL) for s, a in zip(streams, audios, strict=True)]
        assert None not in await asyncio.gather(*steps)
    await asyncio.gather(*[s.step(a, StepKind.CANDIDATE) for s, a in zip(streams, audios, strict=True)])
    (frames,) = await engine.core.vllm.collective_rpc("counted_windows")
    assert not any(stream.lifted_windows for stream in streams)
    for stream in streams:
        await stream.close()
    closed = sum((len(audio) - 200) // 128_000 for audio in audios)
    record_property("figure", f"{closed} closed windows and {len(frames) - closed} open ones encoded")
    assert frames.count(800) == closed > 150
    assert engine.stats()["kv_tokens_charged"] == 0


# A full cache, a long item


async def test_what_does_not_fit_in_the_cache_waits(small: VllmEngine, record_property: Record) -> None:
    audios = [on_grid(audio) for audio in islice(long_audio(26), 16)]
    alone = [(await fresh(small, audio)).answer for audio in audios]
    stats = small.stats()
    assert 6000 < stats["kv_tokens"] < 9000, "the size that was asked for"

    streams = [small.open_stream(PLAIN) for _ in audios]
    steps = [s.step(audio[: 300 * GRID_SAMPLES], StepKind.PARTIAL) for s, audio in zip(streams, audios, strict=True)]
    partials = await asyncio.gather(*steps)
    let_in = [heard is not None for heard in partials]
    assert 0 < let_in.count(True) < len(audios)
    charged = small.stats()["kv_tokens_charged"]
    assert charged <= 0.6 * stats["kv_tokens"]
    assert small.full, "no more sessions should come"

    async def finish(stream: VllmStream, audio: Samples) -> Sequence[int]:
        assert await stream.step(audio, StepKind.FINAL)
        await stream.close()
        return stream.answer

    async with asyncio.timeout(60):
        answers = await asyncio.gather(*map(finish, streams, audios))
    stats = small.stats()
    record_property("figure", f"{let_in.count(True)} of 16 let in, {charged} tokens charged; {stats}")
    assert answers == alone
    assert stats["kv_finals_waited"] == let_in.count(False) == stats["kv_partials_skipped"]
    assert stats["kv_tokens_charged"] == 0
    assert 0 < stats["kv_retention_s"] < 3600
    assert not small.full


async def test_a_manual_item_costs_the_same_at_its_end(small: VllmEngine, record_property: Record) -> None:
    """Ten minutes of speech in one item, as fast as it is heard: flat memory, flat steps, all of its text.

    vLLM's caches are small here: of their usual gigabyte it would take hours to see whether anything else grows.
    """
    metrics, events = Metrics(), list[Event]()
    watched = _Watched(small)
    vad, scheduler = VadBatcher(load_vad()), StepScheduler(SchedulerOptions(), metrics, time.monotonic)
    vad.start()
    scheduler.start()
    scheduler.engine_ready(watched)
    limits = LiveOptions(SessionOptions())
    workers = Workers(vad, scheduler, metrics, Latencies(), time.monotonic)
    live = LiveSession(SessionConfig(turn_detection=None), limits, workers, events.append)
    memory: list[float] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(live.run())
        said, words = 0.0, 0
        for clip in cycle(tiny_clips()):
            if said >= ITEM_S:
                break
            await live.room()
            audio = np.concatenate([clip.samples, np.zeros(SAMPLE_RATE // 2, np.float32)])
            await live.submit(AppendBytes(pcm16(audio)))
            said, words = said + len(audio) / SAMPLE_RATE, words + len(clip.text.split())
            memory.append(_memory_mb())
        await live.submit(Commit())
        await live.submit(Finish())
    await scheduler.stop()
    vad.stop()

    (final,) = (event for event in events if isinstance(event, Final))
    assert isinstance(events[-1], Finished)
    third = len(watched.finals_s) // 3
    early_s, late_s = (statistics.median(part) for part in (watched.finals_s[:third], watched.finals_s[-third:]))
    early, late = (np.subtract(part[-1], part[0]) for part in (watched.work[:third], watched.work[-third:]))
    grown_mb = max(memory[-len(memory) // 3 :]) - max(memory[: len(memory) // 3])
    record_property(
        "figure",
        f"{said:.0f} s, {len(watched.finals_s)} pieces; median final {early_s * 1000:.0f} ms in the first third, "
        f"{late_s * 1000:.0f} ms in the last; {early[1] / early[0]:.0f} and {late[1] / late[0]:.0f} tokens a step; "
        f"memory of all processes {grown_mb:+.0f} MB between them",
    )
    assert len(final.text.split()) > 0.5 * words
    assert watched.longest_s <= 28.0
    assert late[1] / late[0] < 1.3 * early[1] / early[0]
    assert grown_mb < 60


class _Watched:
    """The engine; of every final its time, and what the engine had done by then: steps and tokens computed."""

    def __init__(self, engine: VllmEngine) -> None:
        self.info = engine.info
        self._engine = engine
        self.finals_s: list[float] = []
        self.work: list[tuple[float, float]] = []
        self.longest_s = 0.0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def work_done(self) -> tuple[float, float]:
        stats = self._engine.stats()
        return stats["requests"], stats["prompt_tokens"] - stats["cached_tokens"] + stats["new_tokens"]

    def open_stream(self, options: StreamOptions) -> "_WatchedStream":
        return _WatchedStream(self, self._engine.open_stream(options))


class _WatchedStream:
    def __init__(self, owner: _Watched, stream: VllmStream) -> None:
        self._owner = owner
        self._stream = stream
        self.close = stream.close

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        began = time.monotonic()
        heard = await self._stream.step(audio, kind)
        if kind is not StepKind.PARTIAL:
            self._owner.finals_s.append(time.monotonic() - began)
            self._owner.work.append(self._owner.work_done())
        self._owner.longest_s = max(self._owner.longest_s, len(audio) / SAMPLE_RATE)
        return heard


def _memory_mb() -> float:
    """Return the memory that this process and vLLM's have to themselves."""
    pids = [os.getpid(), *descendants(os.getpid())]
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("Private_")]
    return sum(int(line.split()[1]) for line in lines) / 1024


# Accidents


async def test_a_core_that_dies_in_mid_step_fails_every_step_and_another_takes_its_place(
    small: VllmEngine, record_property: Record
) -> None:
    audios = [on_grid(audio) for audio in islice(long_audio(20), 6)]
    wanted = (await fresh(small, audios[0])).answer
    streams = [small.open_stream(PLAIN) for _ in audios]
    kill("EngineCore", signal.SIGSTOP)  # or, on a busy machine, it may answer the first before it has the last
    steps = [asyncio.create_task(s.step(a, StepKind.FINAL)) for s, a in zip(streams, audios, strict=True)]
    while small.core.vllm.get_num_unfinished_requests() < len(audios):  # noqa: ASYNC110 - vLLM tells nobody
        await asyncio.sleep(0)
    kill("EngineCore")
    began = time.monotonic()
    async with asyncio.timeout(10):
        ended = await asyncio.gather(*steps, return_exceptions=True)
    record_property("figure", f"all steps failed within {time.monotonic() - began:.2f} s")
    assert all(isinstance(one, EngineCrashed) for one in ended), ended
    assert small.dead
    for stream in streams:
        await stream.close()

    await small.stop()
    assert not small.dead
    await small.start()
    assert not small.dead
    assert (await fresh(small, audios[0])).answer == wanted


async def test_a_worker_that_dies_while_nothing_runs_is_missed(small: VllmEngine, record_property: Record) -> None:
    assert not small.dead
    kill("Worker")
    began = time.monotonic()
    async with asyncio.timeout(10):
        while not small.dead:  # noqa: ASYNC110 - as the engine pool does, only more often
            await asyncio.sleep(0.01)
    record_property("figure", f"seen after {time.monotonic() - began:.2f} s")
    with pytest.raises(EngineCrashed):
        await small.open_stream(PLAIN).step(on_grid(next(long_audio(5))), StepKind.FINAL)


def kill(name: str, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to the newest of vLLM's processes of this name."""
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in descendants(os.getpid())}
    os.kill(max((pid for pid, title in titles.items() if name in title), key=_began), how)


def _began(pid: int) -> int:
    """Return when a process was started; the numbers of processes begin anew some day."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
