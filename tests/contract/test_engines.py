"""What every engine must do, asked of each that can run here, and of the fake one.

A new module in `engines/` is in the list the moment it exists; one that says by `auto_reason` that it cannot run on
this machine is asked only what it is.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from qwen3_asr_server.domain import GRID_SAMPLES, Hypothesis, Samples, StepKind, StreamOptions
from qwen3_asr_server.engines import engine_names, load_engine
from qwen3_asr_server.engines._base import Engine, EngineOptions
from qwen3_asr_server.errors import EngineError, EngineNotReady, InvalidValue
from support.children import child_processes
from support.fake_engine import FakeEngine
from support.speech import clip, joined, normalise
from support.tiny_speech import CHECKPOINT, long_audio
from support.vllm_serve import vllm_servers

module_loop = pytest.mark.asyncio(loop_scope="module")
OPTIONS = EngineOptions(str(CHECKPOINT), "float", max_decoders=2, decode_timeout_s=60)
ASKED = os.environ.get("QWEN3_ASR_TEST_ENGINE")
"""The one engine to ask, in an environment made for it: it is given the tiny checkpoint and speech for that."""


def runs_here(name: str) -> bool:
    auto_reason = getattr(import_module(f"qwen3_asr_server.engines.{name}"), "auto_reason", None)
    return auto_reason is None or auto_reason(OPTIONS) is not None


KNOWN = [*engine_names(), "fake"]
ENGINES = [ASKED] if ASKED else [*filter(runs_here, engine_names()), "fake"]


def build(name: str) -> Engine:
    return FakeEngine(OPTIONS) if name == "fake" else load_engine(name, OPTIONS)


def on_grid(samples: Samples) -> Samples:
    return samples[: len(samples) // GRID_SAMPLES * GRID_SAMPLES]


if ASKED:
    SENTENCE, OTHER = islice(long_audio(3), 2)
    LONGER = next(long_audio(5))
else:
    SENTENCE = on_grid(clip("conf-enteringno").samples)
    OTHER = on_grid(clip("queue-thankyou").samples)
    LONGER = on_grid(joined(["conf-hasleft", "queue-thereare"], gap_s=0.4))


@pytest.fixture(scope="module", autouse=True)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real server for the engine that asks one."""
    if ASKED != "vllm_http":
        yield
        return
    with vllm_servers(tmp_path_factory.mktemp("vllm"), 1) as (server,), pytest.MonkeyPatch.context() as patch:
        patch.setattr(request.module, "OPTIONS", replace(OPTIONS, server_urls=(server.url,), connect_timeout_s=10))
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """One started engine for all tests that do not stop it."""
    made = build(request.param)
    await made.start()
    yield made
    await made.stop()


async def decode(engine: Engine, audio: Samples, schedule: Sequence[int] = ()) -> list[Hypothesis]:
    """Decode a piece; `schedule` lists where partials end, in grid units. The final comes last."""
    stream = engine.open_stream(StreamOptions())
    try:
        steps = [await stream.step(audio[: end * GRID_SAMPLES], StepKind.PARTIAL) for end in schedule]
        steps.append(await stream.step(audio, StepKind.FINAL))
    finally:
        await stream.close()
    assert steps[-1] is not None
    return [step for step in steps if step is not None]


async def final(engine: Engine, audio: Samples, schedule: Sequence[int] = ()) -> Hypothesis:
    return (await decode(engine, audio, schedule))[-1]


@pytest.mark.parametrize("name", KNOWN)
@module_loop
async def test_it_says_what_it_is_before_it_runs(name: str) -> None:
    info = build(name).info
    assert info.name == name
    assert info.model
    assert info.description.endswith(".")
    assert info.default_language in info.languages
    assert info.max_streams is None or info.max_streams > 0


@module_loop
async def test_partials_grow_into_a_final(engine: Engine) -> None:
    stream = engine.open_stream(StreamOptions())
    units = len(SENTENCE) // GRID_SAMPLES
    partials = [await stream.step(SENTENCE[: end * GRID_SAMPLES], StepKind.PARTIAL) for end in range(4, units, 4)]
    candidate = await stream.step(SENTENCE, StepKind.CANDIDATE)
    last = await stream.step(SENTENCE, StepKind.FINAL)
    await stream.close()

    assert any(partial is not None and partial.text for partial in partials)
    assert candidate is not None
    assert candidate.text
    assert last is not None
    assert last.text
    assert last.final
    if candidate.final:
        assert candidate.text == last.text


@pytest.mark.parametrize(
    "schedule",
    [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [7, 20], [2, 2, 15, 15], [28], list(range(1, 29))],
    ids=lambda schedule: f"{len(schedule)} steps",
)
@module_loop
async def test_the_final_does_not_depend_on_the_steps(engine: Engine, schedule: list[int]) -> None:
    assert await final(engine, SENTENCE, schedule) == await final(engine, SENTENCE)


@module_loop
async def test_the_final_does_not_depend_on_what_was_decoded_before(engine: Engine) -> None:
    alone = await final(engine, SENTENCE)
    for audio in (OTHER, np.zeros(GRID_SAMPLES * 20, np.float32), LONGER):
        await final(engine, audio, [5])
        assert await final(engine, SENTENCE) == alone


@module_loop
async def test_streams_that_take_turns_do_not_hear_each_other(engine: Engine) -> None:
    alone = [await final(engine, audio) for audio in (SENTENCE, OTHER)]
    first, second = (engine.open_stream(StreamOptions()) for _ in range(2))
    for end in (5, 11, 18):
        await first.step(SENTENCE[: end * GRID_SAMPLES], StepKind.PARTIAL)
        await second.step(OTHER[: end * GRID_SAMPLES], StepKind.PARTIAL)
    assert [await first.step(SENTENCE, StepKind.FINAL), await second.step(OTHER, StepKind.FINAL)] == alone
    await first.close()
    await second.close()


@module_loop
async def test_streams_that_run_at_once_do_not_hear_each_other(engine: Engine) -> None:
    alone = [await final(engine, audio) for audio in (SENTENCE, OTHER, LONGER)]
    assert alone[0].text != alone[1].text
    together = [final(engine, audio, [6, 12]) for audio in (SENTENCE, OTHER, LONGER)]
    assert await asyncio.gather(*together) == alone


@module_loop
async def test_a_final_may_be_shorter_than_what_was_heard(engine: Engine) -> None:
    shorter = SENTENCE[: 18 * GRID_SAMPLES]
    stream = engine.open_stream(StreamOptions())
    await stream.step(SENTENCE, StepKind.PARTIAL)
    cut = await stream.step(shorter, StepKind.FINAL)
    await stream.close()
    assert cut == await final(engine, shorter)


@pytest.mark.parametrize("length", [0, 1, 25])
@pytest.mark.parametrize("loudness", [0.0, 0.0003], ids=["digital silence", "faint noise"])
@module_loop
async def test_silence_has_no_words(engine: Engine, length: int, loudness: float) -> None:
    noise = np.random.default_rng(5).normal(size=length * GRID_SAMPLES).astype(np.float32) * np.float32(loudness)
    heard = await final(engine, noise)
    assert heard.text == ""
    assert not heard.words


@module_loop
async def test_words_are_in_order_and_inside_the_audio(engine: Engine) -> None:
    for heard in await decode(engine, LONGER, [10, 20, 30]):
        if not engine.info.word_times:
            assert not heard.words
            continue
        edges = [edge for word in heard.words for edge in (word.start, word.end)]
        assert edges == sorted(edges)
        assert all(0 <= edge <= len(LONGER) for edge in edges)
        assert normalise(" ".join(word.text for word in heard.words)) == normalise(heard.text)
        assert all(word.confidence is None or 0 <= word.confidence <= 1 for word in heard.words)
        assert heard.confidence is None or 0 <= heard.confidence <= 1


@module_loop
async def test_text_has_no_white_space_around_it_and_a_known_language(engine: Engine) -> None:
    for heard in await decode(engine, SENTENCE, [3, 9, 20]):
        assert heard.text == heard.text.strip()
        assert heard.language is None or heard.language in engine.info.languages


@module_loop
async def test_a_stream_may_be_closed_in_mid_step(engine: Engine) -> None:
    alone = await final(engine, SENTENCE)
    for _ in range(3):
        stream = engine.open_stream(StreamOptions())
        step = asyncio.create_task(stream.step(LONGER, StepKind.FINAL))
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait([step])
        await stream.close()
    assert await asyncio.gather(*[final(engine, SENTENCE) for _ in range(3)]) == [alone] * 3


@module_loop
async def test_a_step_given_up_may_be_asked_again(engine: Engine) -> None:
    stream = engine.open_stream(StreamOptions())
    await stream.step(SENTENCE[: 8 * GRID_SAMPLES], StepKind.PARTIAL)
    step = asyncio.create_task(stream.step(SENTENCE[: 20 * GRID_SAMPLES], StepKind.PARTIAL))
    await asyncio.sleep(0)
    step.cancel()
    await asyncio.wait([step])
    again = await stream.step(SENTENCE, StepKind.FINAL)
    await stream.close()
    assert again == await final(engine, SENTENCE)


@module_loop
async def test_an_unknown_language_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidValue) as refusal:
        engine.open_stream(StreamOptions(language="tlh"))
    assert refusal.value.param == "language"


@module_loop
async def test_every_listed_language_may_be_forced(engine: Engine) -> None:
    for language in engine.info.languages:
        await engine.open_stream(StreamOptions(language=language)).close()


@pytest.mark.parametrize("name", ENGINES)
@module_loop
async def test_it_can_be_stopped_and_started_again(name: str) -> None:
    before = child_processes()
    engine = build(name)
    await engine.stop()
    with pytest.raises(EngineNotReady):
        engine.open_stream(StreamOptions())

    for _ in range(2):
        await engine.start()
        stream = engine.open_stream(StreamOptions())
        await stream.step(OTHER[: 5 * GRID_SAMPLES], StepKind.PARTIAL)
        await engine.stop()
        with pytest.raises(EngineError):
            await stream.step(OTHER, StepKind.FINAL)
        await stream.close()
        with pytest.raises(EngineNotReady):
            engine.open_stream(StreamOptions())
        await engine.stop()
    assert child_processes() == before


def test_this_file_covers_every_engine() -> None:
    folder = Path(__file__).parents[2] / "src" / "qwen3_asr_server" / "engines"
    assert {path.stem for path in folder.glob("[!_]*.py")} <= set(engine_names())
    assert ASKED or {"pocketsphinx", "fake"} <= set(ENGINES)
