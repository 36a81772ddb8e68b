"""What the model should not have written is found before it is sent, in real decodes that go wrong.

A steady tone, or a syllable of a third of a second said sixty times, is nothing that the checkpoint was trained on: it
writes one word over and over. Speech a thousand times too quiet is silence to a listener, and it writes text there.
"""

import numpy as np
import pytest

from qwen3_asr_server.domain import GRID_SAMPLES, SAMPLE_RATE, Samples, StepKind, StreamOptions
from qwen3_asr_server.engines.vllm import VllmEngine
from qwen3_asr_server.text.guard import Suspicion, find_loop, judge
from support.tiny_speech import on_grid, spoken, tiny_clips
from support.whole_clip import stream_through

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONTEXT = "light door window"
SECONDS = np.arange(27 * SAMPLE_RATE) / SAMPLE_RATE
TONE = on_grid((0.3 * np.sin(2 * np.pi * 440 * SECONDS)).astype(np.float32))


def stutter(language: str, number: int) -> Samples:
    """Return a piece of 27 s in which one syllable is said again and again."""
    syllable = spoken(language)[number].samples[1600:8000]
    return on_grid(np.tile(syllable, len(SECONDS) // len(syllable)))


LOOPS = {"a tone": TONE, "English syllables": stutter("en", 24), "Chinese syllables": stutter("zh", 10)}


def suspicions(engine: VllmEngine) -> dict[Suspicion, int]:
    return dict(engine.core.counters.suspicions)


@pytest.mark.parametrize("audio", LOOPS.values(), ids=LOOPS.keys())
async def test_a_final_in_a_loop_is_decoded_once_more_and_sent_without_the_loop(
    engine: VllmEngine, audio: Samples
) -> None:
    counters = engine.core.counters
    loops, redecoded = counters.suspicions[Suspicion.LOOP], counters.redecoded
    stream = engine.open_stream(StreamOptions(context=CONTEXT))
    heard = await stream.step(audio, StepKind.FINAL)
    await stream.close()
    assert heard is not None
    assert counters.redecoded == redecoded + 1
    assert counters.suspicions[Suspicion.LOOP] == loops + 2, "the second decode, without context, is in a loop too"
    written = engine.tools.decode(stream.answer)
    assert find_loop(written) or find_loop(stream.answer)
    assert not find_loop(heard.text)
    assert len(heard.text) < len(written)


@pytest.mark.parametrize("audio", LOOPS.values(), ids=LOOPS.keys())
async def test_no_partial_in_a_loop_is_shown(engine: VllmEngine, audio: Samples) -> None:
    loops = engine.core.counters.suspicions[Suspicion.LOOP]
    heard = await stream_through(engine.open_stream(StreamOptions()), audio, 20 * GRID_SAMPLES)
    assert engine.core.counters.suspicions[Suspicion.LOOP] > loops
    assert not any(find_loop(hypothesis.text) for hypothesis in heard)


async def test_nothing_is_found_in_the_held_out_clips(engine: VllmEngine) -> None:
    """Nor in any of their partials, with and without context."""
    before, redecoded = suspicions(engine), engine.core.counters.redecoded
    for context in ("", CONTEXT):
        for clip in tiny_clips():
            await stream_through(engine.open_stream(StreamOptions(context=context)), clip.samples)
    assert suspicions(engine) == before
    assert engine.core.counters.redecoded == redecoded


async def test_nothing_is_found_in_their_transcripts(engine: VllmEngine) -> None:
    encode = engine.core.tokenizer.encode
    judged = [
        judge(clip.text, encode(clip.text, add_special_tokens=False), context, len(clip.samples) / SAMPLE_RATE)
        for clip in tiny_clips()
        for context in ("", CONTEXT, "打开，关闭，灯")
    ]
    assert judged == [None] * len(judged)
