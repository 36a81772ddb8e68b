"""The batcher, mostly over a model that waits to be let through, so that every interleaving is chosen."""

import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3_asr_server.domain import FRAME_SAMPLES
from qwen3_asr_server.errors import EngineNotReady, InternalError
from qwen3_asr_server.vad import _batcher, load_vad
from qwen3_asr_server.vad._base import Floats, VadModel
from qwen3_asr_server.vad._batcher import TURN_FRAMES, VadBatcher, VadStream
from support.speech import prompts

DEADLINE_S = 5


class CountingModel:
    """Probability: hundredths of the frames its stream has heard before. Calls wait for `steps`, if gated."""

    name = "counting"

    def __init__(self, *, gated: bool = False) -> None:
        self.calls: list[list[float]] = []
        """The first sample of every frame, call by call."""
        self.broken = False
        self._gated = gated
        self._steps = threading.Semaphore(0)
        self._entered = threading.Semaphore(0)

    def new_state(self) -> Floats:
        return np.zeros(1, np.float32)

    def score(self, frames: Floats, states: Floats) -> tuple[Floats, Floats]:
        self.calls.append(frames[:, 0].tolist())
        self._entered.release()
        if self._gated:
            assert self._steps.acquire(timeout=DEADLINE_S)
        if self.broken:
            raise RuntimeError("broken for the test")
        return states[:, 0] / 100, states + 1

    async def entered(self) -> None:
        """Wait until one more call has begun."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=DEADLINE_S)

    def step(self, calls: int = 1) -> None:
        """Let calls through."""
        self._steps.release(calls)


@asynccontextmanager
async def running(
    model: VadModel,
    *,
    max_rows: int = 64,
    gather_s: float = 0.0,
    on_batch: Callable[[int, float], None] | None = None,
) -> AsyncIterator[VadBatcher]:
    batcher = VadBatcher(model, max_rows=max_rows, gather_s=gather_s, on_batch=on_batch)
    batcher.start()
    try:
        async with asyncio.timeout(2 * DEADLINE_S):
            yield batcher
    finally:
        if isinstance(model, CountingModel):
            model.step(10_000)
        batcher.stop()


def tagged(tag: float, count: int) -> Floats:
    return np.full((count, FRAME_SAMPLES), tag, np.float32)


async def begin(stream: VadStream, frames: Floats) -> "asyncio.Task[Floats]":
    """Ask for scores and return once the request is in the inbox."""
    task = asyncio.ensure_future(stream.score(frames))
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("max_rows", [3, 64])
async def test_streams_scored_together_get_what_each_gets_alone(max_rows: int) -> None:
    model = load_vad()
    clips = [clip.samples[: 100 * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES) for clip in prompts() if clip.seconds > 4]
    alone = []
    for frames in clips[:6]:
        states, probabilities = model.new_state()[np.newaxis], []
        for frame in frames:
            probability, states = model.score(frame[np.newaxis], states)
            probabilities.append(probability.item())
        alone.append(probabilities)

    async def score_in_packets(stream: VadStream, frames: Floats, sizes: random.Random) -> list[float]:
        probabilities: list[float] = []
        while len(probabilities) < len(frames):
            at = len(probabilities)
            probabilities += (await stream.score(frames[at : at + sizes.choice([1, 3, 4, 64])])).tolist()
        return probabilities

    async with running(model, max_rows=max_rows) as batcher:
        together = await asyncio.gather(
            *(score_in_packets(batcher.open(), frames, random.Random(seed)) for seed, frames in enumerate(clips[:6]))
        )
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)


async def test_a_stream_remembers_between_requests_until_it_is_reset() -> None:
    async with running(CountingModel()) as batcher:
        stream = batcher.open()
        np.testing.assert_allclose(await stream.score(tagged(0, 3)), [0, 0.01, 0.02])
        np.testing.assert_allclose(await stream.score(tagged(0, 2)), [0.03, 0.04])
        stream.reset()
        np.testing.assert_allclose(await stream.score(tagged(0, 2)), [0, 0.01])


async def test_a_long_request_delays_a_short_one_by_one_turn_at_most() -> None:
    model = CountingModel(gated=True)
    async with running(model) as batcher:
        pushed, live = batcher.open(), batcher.open()
        long = await begin(pushed, tagged(1, 64))
        await model.entered()
        short = await begin(live, tagged(2, 1))
        model.step(2 * TURN_FRAMES)
        await short
        assert model.calls[: 2 * TURN_FRAMES] == [[1]] * TURN_FRAMES + [[1, 2]] + [[1]] * (TURN_FRAMES - 1)
        assert not long.done()
        model.step(64)
        assert len(await long) == 64
    assert len(model.calls) == 64


async def test_more_requests_than_rows_take_turns() -> None:
    model = CountingModel(gated=True)
    async with running(model, max_rows=2) as batcher:
        first = await begin(batcher.open(), tagged(0, 1))
        await model.entered()
        rest = [await begin(batcher.open(), tagged(tag, 2)) for tag in (1, 2, 3, 4, 5)]
        model.step(1000)
        await asyncio.gather(first, *rest)
    assert model.calls == [[0], [1, 2], [1, 2], [3, 4], [3, 4], [5], [5]]


async def test_requests_of_different_lengths_share_calls_as_long_as_they_last() -> None:
    model = CountingModel(gated=True)
    async with running(model) as batcher:
        first = await begin(batcher.open(), tagged(0, 1))
        await model.entered()
        rest = [await begin(batcher.open(), tagged(tag, tag)) for tag in (1, 4, 3)]
        model.step(1000)
        await asyncio.gather(first, *rest)
        for tag, task in zip((1, 4, 3), rest, strict=True):
            np.testing.assert_allclose(await task, np.arange(tag) / 100)
    assert model.calls == [[0], [4, 3, 1], [4, 3], [4, 3], [4]]


async def test_what_finishes_together_is_delivered_with_one_wakeup(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    wakeups: list[object] = []
    wake = loop.call_soon_threadsafe

    def count(callback: Callable[..., object], *args: object) -> asyncio.Handle:
        if threading.current_thread().name == "vad":
            wakeups.append(callback)
        return wake(callback, *args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    model = CountingModel(gated=True)
    async with running(model) as batcher:
        first = await begin(batcher.open(), tagged(0, 1))
        await model.entered()
        rest = [await begin(batcher.open(), tagged(1, 3)) for _ in range(8)]
        model.step(1000)
        await asyncio.gather(first, *rest)
    assert len(wakeups) == 2


async def test_an_idle_thread_waits_for_company_among_several_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_asked = threading.Event()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        assert everybody_asked.wait(DEADLINE_S)

    monkeypatch.setattr(_batcher, "time", SimpleNamespace(sleep=sleep, perf_counter=time.perf_counter))
    model = CountingModel()
    async with running(model, gather_s=0.25) as batcher:
        streams = [batcher.open() for _ in range(4)]
        tasks = [await begin(stream, tagged(tag, 1)) for tag, stream in enumerate(streams[:3])]
        everybody_asked.set()
        await asyncio.gather(*tasks)
    assert model.calls == [[0, 1, 2]]
    assert waits == [0.25]


async def test_a_stream_alone_waits_for_nobody() -> None:
    async with running(CountingModel(), gather_s=1000) as batcher:
        batcher.open().close()
        assert len(await batcher.open().score(tagged(0, 3))) == 3


async def test_rows_and_seconds_of_every_call_are_told() -> None:
    told: list[tuple[int, float]] = []
    async with running(CountingModel(), on_batch=lambda rows, seconds: told.append((rows, seconds))) as batcher:
        await batcher.open().score(tagged(0, 3))
    assert [rows for rows, _ in told] == [1, 1, 1]
    assert all(0 <= seconds < DEADLINE_S for _, seconds in told)


async def test_a_fault_fails_who_was_in_it_and_the_thread_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    model = CountingModel(gated=True)
    async with running(model) as batcher:
        streams = [batcher.open() for _ in range(3)]
        first = await begin(streams[0], tagged(0, TURN_FRAMES + 1))
        await model.entered()
        rest = [await begin(stream, tagged(1, 1)) for stream in streams[1:]]
        model.step(TURN_FRAMES)
        for _ in range(TURN_FRAMES):
            await model.entered()
        model.broken = True
        model.step()
        outcomes = await asyncio.gather(first, *rest, return_exceptions=True)
        model.broken = False
        model.step(1000)
        again = [await stream.score(tagged(2, 2)) for stream in streams]
    assert [type(outcome) for outcome in outcomes] == [InternalError] * 3
    (record,) = caplog.records
    assert all(record.error_id in str(outcome) for outcome in outcomes)
    np.testing.assert_allclose(again, [[0, 0.01]] * 3, err_msg="a failed stream starts afresh")


async def test_stop_fails_what_waits_and_ends_the_thread() -> None:
    others = set(threading.enumerate())
    model = CountingModel(gated=True)
    batcher = VadBatcher(model, gather_s=0)
    batcher.start()
    stream = batcher.open()
    scored = await begin(stream, tagged(0, 64))
    await model.entered()
    queued = await begin(batcher.open(), tagged(1, 1))
    model.step(2 * TURN_FRAMES)
    batcher.stop()
    for task in (scored, queued):
        with pytest.raises(EngineNotReady):
            await task
    assert not [thread for thread in threading.enumerate() if thread.name == "vad" and thread not in others]
    assert len(model.calls) <= 2 * TURN_FRAMES, "the turn it was in, and one that may have begun meanwhile"
    batcher.stop()
    with pytest.raises(EngineNotReady):
        await stream.score(tagged(0, 1))


async def test_nothing_is_scored_before_start() -> None:
    with pytest.raises(EngineNotReady):
        await VadBatcher(CountingModel()).open().score(tagged(0, 1))


async def test_a_cancelled_request_is_dropped_and_its_stream_starts_afresh() -> None:
    model = CountingModel(gated=True)
    async with running(model) as batcher:
        stream, other = batcher.open(), batcher.open()
        cancelled = await begin(stream, tagged(1, 64))
        await model.entered()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        again = await begin(stream, tagged(2, 2))
        waiting = await begin(other, tagged(3, 1))
        model.step(1000)
        np.testing.assert_allclose(await again, [0, 0.01])
        await waiting
    assert model.calls == [[1]] * TURN_FRAMES + [[2, 3], [2]]


@pytest.mark.parametrize("ended_by", ["answer", "close", "stop"])
async def test_an_answer_that_comes_in_the_moment_of_a_cancellation(ended_by: str) -> None:
    """The future is cancelled at once, its task is told at its next turn; the answer comes between the two."""
    model = CountingModel(gated=True)
    async with running(model) as batcher:
        stream = batcher.open()
        scored = await begin(stream, tagged(1, 2))
        await model.entered()
        (request,) = batcher._waiting
        scored.cancel()
        match ended_by:
            case "answer":
                request.answer(np.zeros(2, np.float32))
            case "close":
                stream.close()
            case "stop":
                model.step(2)
                batcher.stop()
        with pytest.raises(asyncio.CancelledError):
            await scored
        if ended_by == "answer":
            model.step(3)
            np.testing.assert_allclose(await stream.score(tagged(2, 1)), [0], err_msg="it starts afresh")


async def test_who_cannot_take_its_answer_keeps_it_from_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def broken(answer: object) -> None:
        raise RuntimeError("broken for the test")

    model = CountingModel(gated=True)
    async with running(model) as batcher:
        first, second, third = (batcher.open() for _ in range(3))
        held = await begin(first, tagged(0, 1))
        await model.entered()
        second.submit(tagged(1, 1), broken)
        after_it = await begin(third, tagged(2, 1))
        model.step(2)
        assert [len(await held), len(await after_it)] == [1, 1]
        assert model.calls == [[0], [1, 2]], "both were of one batch"
    (record,) = caplog.records
    assert record.exc_info
    assert "broken for the test" in str(record.exc_info[1])


async def test_a_stream_takes_one_request_at_a_time() -> None:
    model = CountingModel(gated=True)
    async with running(model) as batcher:
        stream = batcher.open()
        first = await begin(stream, tagged(1, 1))
        with pytest.raises(RuntimeError, match="one score at a time"):
            await stream.score(tagged(2, 1))
        model.step(1)
        assert len(await first) == 1


async def test_close_fails_what_waits_and_ends_the_stream() -> None:
    model = CountingModel(gated=True)
    async with running(model) as batcher:
        stream = batcher.open()
        assert batcher.streams == 1
        waiting = await begin(stream, tagged(1, 64))
        await model.entered()
        stream.close()
        stream.close()
        assert batcher.streams == 0
        with pytest.raises(EngineNotReady):
            await waiting
        with pytest.raises(RuntimeError, match="none after close"):
            await stream.score(tagged(2, 1))


@pytest.mark.parametrize("shape", [(0, 512), (65, 512), (1, 511), (512,), (1, 1, 512)])
async def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    async with running(CountingModel()) as batcher:
        with pytest.raises(ValueError, match="frames must be"):
            await batcher.open().score(np.zeros(shape, np.float32))


async def test_nothing_of_a_closed_stream_is_kept() -> None:
    async with running(CountingModel()) as batcher:
        seen: list[weakref.ref[object]] = []
        for _ in range(20):
            stream, frames = batcher.open(), tagged(0, 64)
            await stream.score(frames)
            stream.close()
            seen += [weakref.ref(stream), weakref.ref(frames)]
        del stream, frames
        # One more request makes the thread leave whatever it held of the last one.
        await batcher.open().score(tagged(0, 1))
        gc.collect()
        assert [ref for ref in seen if ref() is not None] == []
