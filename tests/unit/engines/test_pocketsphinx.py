"""The embedded engine as a whole, with its real decoders: what it loses and finds again."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from qwen3_asr_server.domain import GRID_SAMPLES, Hypothesis, StepKind, StreamOptions
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines.pocketsphinx import PocketSphinxEngine, PocketSphinxStream, Timing
from qwen3_asr_server.errors import EngineCrashed, EngineNotReady, EngineTimeout
from support.children import child_processes, ended_within
from support.speech import clip

module_loop = pytest.mark.asyncio(loop_scope="module")

SENTENCE = clip("conf-enteringno").samples[: 28 * GRID_SAMPLES]
TEXT = "you are entering conference number"
RECLAIM_AFTER_S = 2.0


class Clock:
    """Time as a number that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(clock: Clock) -> AsyncIterator[PocketSphinxEngine]:
    """One engine with a single decoder, so that two streams quarrel over it."""
    engine = PocketSphinxEngine(
        EngineOptions(max_decoders=1),
        timing=Timing(step_s=3.0, wait_s=60.0, reclaim_after_s=RECLAIM_AFTER_S),
        clock=clock,
    )
    await engine.start()
    yield engine
    await engine.stop()


async def partial(stream: PocketSphinxStream, units: int) -> Hypothesis | None:
    return await stream.step(SENTENCE[: units * GRID_SAMPLES], StepKind.PARTIAL)


async def final(stream: PocketSphinxStream) -> str:
    heard = await stream.step(SENTENCE, StepKind.FINAL)
    await stream.close()
    assert heard is not None
    return heard.text


@module_loop
async def test_a_stream_without_a_decoder_has_no_partials_but_its_final(
    engine: PocketSphinxEngine, clock: Clock
) -> None:
    first, second = engine.open_stream(StreamOptions()), engine.open_stream(StreamOptions())
    assert await partial(first, 14) is not None
    assert await partial(second, 14) is None
    waiting = asyncio.create_task(final(second))
    assert await final(first) == TEXT
    assert await waiting == TEXT


@module_loop
async def test_a_decoder_left_idle_changes_hands_and_the_loser_starts_over(
    engine: PocketSphinxEngine, clock: Clock
) -> None:
    first, second = engine.open_stream(StreamOptions()), engine.open_stream(StreamOptions())
    before = await partial(first, 14)
    clock.now += RECLAIM_AFTER_S
    assert await partial(second, 7) is not None
    assert await partial(first, 15) is None
    clock.now += RECLAIM_AFTER_S
    assert await partial(first, 14) == before
    assert await final(first) == TEXT
    assert await final(second) == TEXT


@module_loop
async def test_a_closed_stream_gives_its_decoder_back(engine: PocketSphinxEngine) -> None:
    first, second = engine.open_stream(StreamOptions()), engine.open_stream(StreamOptions())
    await partial(first, 3)
    await first.close()
    assert await partial(second, 3) is not None
    await second.close()


@module_loop
async def test_a_killed_decoder_fails_one_step_and_the_stream_goes_on(engine: PocketSphinxEngine) -> None:
    stream = engine.open_stream(StreamOptions())
    await partial(stream, 14)
    (pid,) = engine.decoder_pids
    step = asyncio.create_task(stream.step(SENTENCE, StepKind.FINAL))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineCrashed):
        await step
    assert await final(stream) == TEXT
    assert engine.decoder_pids != [pid]


@module_loop
async def test_a_decoder_that_died_between_steps_is_not_noticed(engine: PocketSphinxEngine) -> None:
    stream = engine.open_stream(StreamOptions())
    await partial(stream, 14)
    (pid,) = engine.decoder_pids
    os.kill(pid, signal.SIGKILL)
    assert ended_within(pid, 10)
    async with asyncio.timeout(10):
        while engine.decoder_pids:  # noqa: ASYNC110 - the loop has yet to hear of the death
            await asyncio.sleep(0)
    assert await final(stream) == TEXT


@module_loop
async def test_signals_meant_for_the_server_do_not_reach_the_decoders(engine: PocketSphinxEngine) -> None:
    (pid,) = engine.decoder_pids
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert os.getpgid(pid) != os.getpgid(0)
    assert await final(engine.open_stream(StreamOptions())) == TEXT
    assert engine.decoder_pids == [pid]


@module_loop
async def test_audio_off_the_grid_is_heard_to_its_end(engine: PocketSphinxEngine) -> None:
    whole = clip("conf-enteringno").samples
    assert len(whole) % GRID_SAMPLES
    texts = []
    for cuts in ([], [5000, 11111, 30001]):
        stream = engine.open_stream(StreamOptions())
        for cut in cuts:
            await stream.step(whole[:cut], StepKind.PARTIAL)
        texts.append(await stream.step(whole, StepKind.FINAL))
        await stream.close()
    assert texts[0] == texts[1]
    assert texts[0] is not None
    assert texts[0].words


@module_loop
async def test_a_final_says_how_sure_it_is_and_a_partial_does_not(engine: PocketSphinxEngine) -> None:
    stream = engine.open_stream(StreamOptions())
    before = await stream.step(SENTENCE, StepKind.CANDIDATE)
    after = await stream.step(SENTENCE, StepKind.FINAL)
    await stream.close()
    assert before is not None
    assert after is not None
    assert {word.confidence for word in before.words} == {None}
    assert before.confidence is None
    assert after.confidence == pytest.approx(np.mean([word.confidence for word in after.words]))


@module_loop
async def test_loud_audio_is_clipped_and_not_wrapped(engine: PocketSphinxEngine) -> None:
    stream = engine.open_stream(StreamOptions())
    heard = await stream.step(np.ones(GRID_SAMPLES * 10, np.float32) * 1.5, StepKind.FINAL)
    await stream.close()
    assert heard is not None
    assert heard.text == ""


READY_THEN_DEAF = """
import sys
from qwen3_asr_server.engines._pocketsphinx_wire import HEADER, READY, Report, Told, message
out, requests = sys.stdout.buffer, sys.stdin.buffer
out.write(message(READY, Told.HEARD))
out.flush()
number, ask, length = HEADER.unpack(requests.read(HEADER.size))
requests.read(length)
out.write(message(number, Told.HEARD, Report("", []).to_body()))
out.flush()
requests.read()
"""


async def test_a_step_has_a_deadline() -> None:
    engine = PocketSphinxEngine(
        EngineOptions(),
        timing=Timing(step_s=0.5, wait_s=60.0, step_per_audio=0.0),
        command=(sys.executable, "-c", READY_THEN_DEAF),
    )
    await engine.start()
    stream = engine.open_stream(StreamOptions())
    with pytest.raises(EngineTimeout):
        await stream.step(SENTENCE, StepKind.FINAL)
    assert engine.decoder_pids == []
    await engine.stop()


async def test_a_decoder_that_does_not_work_is_an_error_at_start() -> None:
    before = child_processes()
    engine = PocketSphinxEngine(EngineOptions(), command=(sys.executable, "-c", "raise SystemExit(1)"))
    with pytest.raises(EngineNotReady, match="does not work here"):
        await engine.start()
    with pytest.raises(EngineNotReady):
        engine.open_stream(StreamOptions())
    assert child_processes() == before


async def test_a_missing_package_is_an_error_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineNotReady, match="not installed"):
        await PocketSphinxEngine(EngineOptions()).start()


OWNER = """
import asyncio, sys
from qwen3_asr_server.domain import StepKind, StreamOptions
from qwen3_asr_server.engines import load_engine
from qwen3_asr_server.engines._base import EngineOptions
import numpy as np

async def main():
    engine = load_engine("pocketsphinx", EngineOptions(max_decoders=2))
    await engine.start()
    streams = [engine.open_stream(StreamOptions()) for _ in range(2)]
    for stream in streams:
        await stream.step(np.zeros(1280, np.float32), StepKind.PARTIAL)
    print(*engine.decoder_pids, flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_decoders_die_with_a_server_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(ended_within(pid, 0) for pid in pids)
        owner.kill()
    assert all(ended_within(pid, 10) for pid in pids)
