"""The engine vllm_http on two real `vllm serve`: the same texts, only new audio travels, no word is lost with a server.

The last tests kill servers; whoever needs one starts it again.
"""

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from urllib.error import HTTPError

import numpy as np
import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from qwen3_asr_server.domain import GRID_SAMPLES, Hypothesis, Samples, StepKind, StreamOptions
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines.vllm import VllmEngine
from qwen3_asr_server.engines.vllm_http import VllmHttpEngine
from qwen3_asr_server.errors import EngineNotReady
from support.children import descendants
from support.invariants import Frame
from support.process import ServerProcess, running_server
from support.raw_client import RawClient, raw_client
from support.speech import pcm16
from support.tiny_speech import CHECKPOINT, joined, long_audio, on_grid, spoken, tiny_clips
from support.vllm_serve import VllmServe, vllm_servers
from support.whole_clip import STEP, stream_through

pytestmark = pytest.mark.asyncio(loop_scope="session")

PLAIN = StreamOptions()
LONG = [on_grid(next(long_audio(seconds))) for seconds in (9, 15, 22, 27.5)]
"""Joined clips over two to four windows."""
BACK_S = 120.0
COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"
Record = Callable[[str, object], None]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmServe]]:
    with vllm_servers(tmp_path_factory.mktemp("vllm"), 2) as running:
        yield running


def options(servers: Sequence[VllmServe]) -> EngineOptions:
    # The two processors of a test machine are busy: a server may well take its time.
    return EngineOptions(
        str(CHECKPOINT),
        "float",
        decode_timeout_s=60,
        server_urls=[server.url for server in servers],
        connect_timeout_s=10,
    )


@asynccontextmanager
async def started(made: VllmHttpEngine) -> AsyncIterator[VllmHttpEngine]:
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def remote(servers: list[VllmServe]) -> AsyncIterator[VllmHttpEngine]:
    async with started(VllmHttpEngine(options(servers))) as made:
        yield made


async def at_once(engine: VllmHttpEngine, audio: Samples) -> Hypothesis:
    stream = engine.open_stream(PLAIN)
    heard = await stream.step(audio, StepKind.FINAL)
    await stream.close()
    assert heard is not None
    return heard


def seat_of(engine: VllmHttpEngine) -> int:
    """Return the place in the list of the server that has the only open stream."""
    (found,) = [server.number - 1 for server in engine.fleet.servers if server.streams]
    return found


async def becomes_true(condition: Callable[[], bool], limit_s: float = BACK_S) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - other processes tell nobody
            await asyncio.sleep(0.02)


async def test_finals_are_those_of_the_engine_vllm(
    engine: VllmEngine, remote: VllmHttpEngine, record_property: Record
) -> None:
    """Ids and languages, at fp32: whole clips and joined ones, checked finals on both sides."""
    audios = [*(clip.samples for clip in tiny_clips()), *LONG]
    before, before_here = remote.stats(), engine.stats()
    different = []
    for number, audio in enumerate(audios):
        here, there = engine.open_stream(PLAIN), remote.open_stream(PLAIN)
        wanted = (await stream_through(here, audio))[-1]
        found = (await stream_through(there, audio))[-1]
        if (there.answer, found.text, found.language) != (here.answer, wanted.text, wanted.language):
            different.append((number, wanted.text, found.text))
        assert found.confidence == pytest.approx(wanted.confidence, abs=1e-3)
    stats, stats_here = remote.stats(), engine.stats()
    checks = {name: stats[name] - before[name] for name in ("verified", "corrected")}
    record_property("figure", f"vllm_http, {len(audios)} clips, different from vllm: {different}; checks: {checks}")
    assert not different
    assert checks == {name: stats_here[name] - before_here[name] for name in checks}
    assert checks["verified"] >= 0.9 * len(audios)
    assert checks["corrected"] > 0, "no draft was ever wrong, so nothing was tested"


async def test_checked_finals_are_fresh_finals(remote: VllmHttpEngine, servers: list[VllmServe]) -> None:
    async with started(VllmHttpEngine(options(servers), verify=False)) as fresh:
        for audio in [*(clip.samples for clip in tiny_clips()[::4]), LONG[1]]:
            checked = remote.open_stream(PLAIN)
            await stream_through(checked, audio, 2 * GRID_SAMPLES)
            plain = fresh.open_stream(PLAIN)
            await stream_through(plain, audio, len(audio))
            assert checked.answer == plain.answer


async def test_only_new_windows_travel_and_each_is_encoded_once(
    remote: VllmHttpEngine, servers: list[VllmServe], record_property: Record
) -> None:
    """Over interleaved streams on both servers: a step sends its open window, and a closed one when it closes."""
    audios = list(islice((on_grid(audio) for audio in long_audio(22)), 6))
    for server in servers:
        server.count_windows()
    before = remote.stats()
    streams = [remote.open_stream(PLAIN) for _ in audios]
    lengths = range(STEP, min(map(len, audios)), STEP)
    for length in lengths:
        await asyncio.gather(*[s.step(a[:length], StepKind.PARTIAL) for s, a in zip(streams, audios, strict=True)])
    assert [server.streams for server in remote.fleet.servers] == [3, 3]
    await asyncio.gather(*[s.step(a, StepKind.CANDIDATE) for s, a in zip(streams, audios, strict=True)])
    after = remote.stats()
    closed = sum((len(audio) - 200) // 128_000 for audio in audios)
    lifted = sum(len(stream.lifted_windows) for stream in streams)
    for stream in streams:
        await stream.close()

    steps = len(audios) * (len(lengths) + 1)
    sent = after["sent_windows"] - before["sent_windows"]
    sent_bytes = after["sent_bytes"] - before["sent_bytes"]
    whole = 4 / 3 * 4 * 128 / 160 * sum(length * len(audios) for length in lengths)
    record_property(
        "figure",
        f"vllm_http, {len(audios)} streams of 22 s in {steps} steps: {sent} windows sent ({closed} closed, {lifted}"
        f" again as the floor rose), {sent_bytes / 1e6:.0f} MB; all audio in every step would be {whole / 1e6:.0f} MB",
    )
    assert sent == steps + closed + lifted
    assert sent_bytes < whole / 2
    frames = [frames for server in servers for frames in server.encoded_windows()]
    assert sum(length == 800 for length in frames) == closed + lifted
    assert [server.streams for server in remote.fleet.servers] == [0, 0]


async def test_audio_that_a_server_lost_is_sent_again(remote: VllmHttpEngine, servers: list[VllmServe]) -> None:
    wanted = await at_once(remote, LONG[0])
    stream = remote.open_stream(PLAIN)
    await stream.step(LONG[0][: 110 * GRID_SAMPLES], StepKind.PARTIAL)
    for server in servers:
        server.ask("/reset_mm_cache")
    before = remote.stats()
    assert await stream.step(LONG[0], StepKind.FINAL) == wanted
    await stream.close()
    after = remote.stats()
    assert after["resent"] == before["resent"] + 1
    assert after["moved"] == before["moved"]
    assert after["servers_up"] == 2


async def test_a_step_given_up_leaves_the_next_one_right(remote: VllmHttpEngine) -> None:
    """Wherever it is cut off: before it is sent, on its way, while it runs."""
    wanted = await at_once(remote, LONG[3])
    for pause_s in (0, 0.005, 0.02, 0.05):
        stream = remote.open_stream(PLAIN)
        await stream.step(LONG[3][: 110 * GRID_SAMPLES], StepKind.PARTIAL)
        step = asyncio.create_task(stream.step(LONG[3][: 220 * GRID_SAMPLES], StepKind.PARTIAL))
        await asyncio.wait({step}, timeout=pause_s)
        step.cancel()
        await asyncio.wait({step})
        assert await stream.step(LONG[3], StepKind.FINAL) == wanted
        await stream.close()


async def test_a_forced_language_and_a_context_travel(remote: VllmHttpEngine) -> None:
    for language in ("en", "zh"):
        stream = remote.open_stream(StreamOptions(language, context="light door"))
        heard = await stream.step(spoken("en")[3].samples, StepKind.FINAL)
        await stream.close()
        assert heard is not None
        assert heard.language == language


async def test_a_session_stays_where_its_context_is_cached(remote: VllmHttpEngine, record_property: Record) -> None:
    """Utterance by utterance, between those of another session."""
    session = StreamOptions(context="light door " * 200)
    places: list[tuple[int, int]] = []
    cached = [remote.stats()["cached_tokens"]]
    for _ in range(3):
        streams = [remote.open_stream(replace(session, session=number)) for number in (1001, 1002)]
        taken = [server.taken for server in remote.fleet.servers]
        for place, stream in enumerate(streams):
            await stream.step(spoken("en")[place].samples, StepKind.FINAL)
            after = [server.taken for server in remote.fleet.servers]
            places.append((place, [new - old for new, old in zip(after, taken, strict=True)].index(1)))
            taken = after
            await stream.close()
        cached.append(remote.stats()["cached_tokens"])
    assert len(set(places)) == 2, "each stayed with its own"
    assert {server for _, server in places} == {0, 1}
    first, *later = (int(tokens) for tokens in np.diff(cached))
    record_property("figure", f"tokens of two utterances that were cached: {first}, then {later}")
    assert all(tokens > first + 400 for tokens in later), "most of a context of 400 words, twice"


@contextmanager
def stopped(server: VllmServe) -> Iterator[None]:
    """Let it hang: it takes connections, and answers nothing."""
    assert server.process is not None
    pids = descendants(server.process.pid) | {server.process.pid}
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def test_a_server_that_hangs_is_left_and_found_again(servers: list[VllmServe]) -> None:
    audio = LONG[1]
    async with started(VllmHttpEngine(replace(options(servers), connect_timeout_s=3))) as engine:
        wanted = await at_once(engine, audio)
        stream = engine.open_stream(PLAIN)
        await stream.step(audio[: 110 * GRID_SAMPLES], StepKind.PARTIAL)
        place = seat_of(engine)
        with stopped(servers[place]):
            assert await stream.step(audio, StepKind.FINAL) == wanted
            assert seat_of(engine) != place
            assert engine.stats()["moved"] == 1
            assert engine.stats()[f"server_{place + 1}_up"] == 0
            assert (await at_once(engine, audio)) == wanted
        await stream.close()
        await becomes_true(lambda: engine.stats()["servers_up"] == 2)
        assert await asyncio.gather(*[at_once(engine, audio) for _ in range(4)]) == [wanted] * 4


async def test_a_server_killed_in_mid_step_costs_no_word(servers: list[VllmServe]) -> None:
    """Streams of both servers are in mid-utterance; one server dies while it works for its streams."""
    audios = [joined([clip, other]) for clip, other in zip(spoken("en"), spoken("zh"), strict=False)][:6]
    async with started(VllmHttpEngine(options(servers))) as engine:
        wanted = [await at_once(engine, audio) for audio in audios]
        streams = [engine.open_stream(PLAIN) for _ in audios]
        for stream, audio in zip(streams, audios, strict=True):
            await stream.step(audio[: 12 * GRID_SAMPLES], StepKind.PARTIAL)
        assert [server.streams for server in engine.fleet.servers] == [3, 3]
        with stopped(servers[0]):  # else it might be done before it dies
            asked = engine.stats()["sent_bytes"]
            steps = [asyncio.create_task(s.step(a, StepKind.FINAL)) for s, a in zip(streams, audios, strict=True)]
            await asyncio.wait(steps[1::2])
            assert engine.stats()["sent_bytes"] > asked
            assert not any(step.done() for step in steps[::2])
            servers[0].kill()
        assert await asyncio.gather(*steps) == wanted
        assert [server.streams for server in engine.fleet.servers] == [0, 6]
        assert engine.stats()["moved"] == 3
        assert [engine.stats()[f"server_{number}_up"] for number in (1, 2)] == [0, 1]
        for stream in streams:
            await stream.close()


async def test_without_any_server_utterances_fail_and_sessions_live(servers: list[VllmServe]) -> None:
    """One session of the whole server: with one of two servers, with none, and with the other one when that is back."""
    clip = spoken("en")[3]
    settings = {
        "ENGINE": "vllm_http",
        "QWEN3_ASR_MODEL_PATH": str(CHECKPOINT),
        "MODEL_DTYPE": "float",
        "VLLM_URLS": ",".join(server.url for server in servers),
        "VLLM_CONNECT_TIMEOUT_S": "10",
    }
    servers[0].kill()
    with running_server(**settings) as running:
        async with raw_client(running.url) as client:
            await client.send("session.update", session={"modalities": ["text"], "turn_detection": None})
            first = await say(client, clip.samples, COMPLETED)
            assert counters(running)["servers_up"] == 1

            servers[1].kill()
            lost = await say(client, clip.samples, FAILED)
            assert "server" in lost["error"]["message"]
            assert servers[1].url not in str(lost)
            assert counters(running)["servers_up"] == 0
            with pytest.raises(HTTPError) as not_ready:
                await asyncio.to_thread(running.get, "/health/ready")
            assert not_ready.value.code == 503
            assert json.load(not_ready.value)["status"] == "full"
            async with raw_client(running.url) as refused:
                with pytest.raises(ConnectionClosed) as closed:
                    await refused.read_until("session.created")
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013

            servers[0].start()
            await asyncio.to_thread(servers[0].wait)
            await asyncio.to_thread(wait_until, lambda: counters(running)["server_1_up"] == 1)
            assert (await asyncio.to_thread(running.get, "/health/ready"))["status"] == "ready"
            again = await say(client, clip.samples, COMPLETED)
            assert again["transcript"] == first["transcript"]


async def say(client: RawClient, audio: Samples, ends: str) -> Frame:
    """Commit an item, and return the event that ends it."""
    await client.append(pcm16(np.asarray(audio)))
    await client.send("input_audio_buffer.commit")
    return await client.read_until(ends)


def counters(running: ServerProcess) -> dict[str, int]:
    return dict(running.get("/stats")["engine_counters"])


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(round(BACK_S / 0.2)):
        if condition():
            return
        pause.wait(0.2)
    raise AssertionError("it did not come back")


async def test_with_no_server_at_all_it_does_not_start(servers: list[VllmServe]) -> None:
    dead = VllmServe(servers[0].folder, 9)
    engine = VllmHttpEngine(options([dead]))
    with pytest.raises(EngineNotReady, match="server 1 does not answer"):
        await engine.start()
    with pytest.raises(EngineNotReady):
        engine.open_stream(PLAIN)
    assert engine.stats() == {}
