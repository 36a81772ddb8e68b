"""A clip through the engine vllm as a session streams it, and whole through vLLM's own front end."""

import time

import numpy as np

from qwen3_asr_server.domain import GRID_SAMPLES, Hypothesis, Samples, StepKind
from qwen3_asr_server.engines._vllm_request import Ending, Request, TokenIds, Window
from qwen3_asr_server.engines._vllm_stream import VllmStream
from qwen3_asr_server.engines.vllm import VllmEngine

STEP = 6 * GRID_SAMPLES
"""0.48 s of audio between two partials."""


async def stream_through(
    stream: VllmStream, audio: Samples, step: int = STEP, kind: StepKind = StepKind.CANDIDATE
) -> list[Hypothesis]:
    """Decode a piece as a session does; the last answer is the candidate's or final's."""
    heard = [await stream.step(audio[:end], StepKind.PARTIAL) for end in range(step, len(audio), step)]
    heard.append(await stream.step(audio, kind))
    await stream.close()
    assert None not in heard
    return [hypothesis for hypothesis in heard if hypothesis is not None]


async def reference_ids(engine: VllmEngine, audio: Samples) -> TokenIds:
    """Give vLLM the whole clip as one item through its own front end, as its offline users do."""
    core, tools = engine.core, engine.tools
    before = tuple(tools.prompt.opening(()))
    after = tuple(tools.prompt.prompt_ids((), (), None, ())[len(before) :])
    whole = Window(f"reference {time.monotonic_ns()}", np.empty((128, 0), np.float32), audio, 0)
    direct, core.direct = core.direct, False
    try:
        answer = await core.generate(Request(before, [whole], after, 400, StepKind.FINAL, time.time()))
    finally:
        core.direct = direct
    assert answer.ending is Ending.STOP
    return answer.ids
