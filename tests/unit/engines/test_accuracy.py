"""The embedded engine's word error rate on the human prompts, each decoded whole, fed directly.

The figure that the server is later held against: what its own cutting and pacing may cost. Run with `-s` to see it.
"""

import asyncio
import time
from collections.abc import Callable

from qwen3_asr_server.domain import StepKind, StreamOptions
from qwen3_asr_server.engines import load_engine
from qwen3_asr_server.engines._base import Engine, EngineOptions
from support.speech import Clip, normalise, prompts, wer

HIGHEST_WER = 0.25
FEWEST_WORDS = 300
DECODERS = 2


async def test_the_word_error_rate_on_whole_prompts(record_property: Callable[[str, object], None]) -> None:
    engine = load_engine("pocketsphinx", EngineOptions(max_decoders=DECODERS, decode_timeout_s=60))
    await engine.start()
    began = time.perf_counter()
    try:
        heard = await _transcribe_all(engine)
    finally:
        await engine.stop()
    took_s = time.perf_counter() - began

    references = [clip.text for clip in prompts()]
    words = sum(len(normalise(text).split()) for text in references)
    audio_s = sum(clip.seconds for clip in prompts())
    rate = wer(references, heard)
    rtf = took_s * DECODERS / audio_s
    record_property("wer", round(rate, 4))
    record_property("rtf", round(rtf, 3))
    figure = (
        f"WER {rate:.1%} over {words} words in {len(references)} prompts ({audio_s:.0f} s), RTF {rtf:.2f} a decoder"
    )
    record_property("figure", figure)

    assert words >= FEWEST_WORDS
    assert rate <= HIGHEST_WER, figure


async def _transcribe_all(engine: Engine) -> list[str]:
    room = asyncio.Semaphore(DECODERS)

    async def transcribe(clip: Clip) -> str:
        async with room:
            stream = engine.open_stream(StreamOptions())
            heard = await stream.step(clip.samples, StepKind.FINAL)
            await stream.close()
            assert heard is not None
            return heard.text

    return list(await asyncio.gather(*[transcribe(clip) for clip in prompts()]))
