"""What a vLLM has to do before sessions get it: a partial, a candidate and a final of a known clip.

Each of them takes another way: a partial goes on from the last one, a candidate and a final check a draft. Knows no
vLLM, and does not judge the text; `vllm.py` and `vllm_http.py` call it.
"""

from typing import Final

from qwen3_asr_server.domain import GRID_SAMPLES, StepKind
from qwen3_asr_server.engines._base import EngineStream
from qwen3_asr_server.engines._qwen3_checkpoint import known_clip

_BEGINNINGS: Final = ((6, StepKind.PARTIAL), (12, StepKind.PARTIAL), (18, StepKind.CANDIDATE))
"""How much of the clip is heard before all of it, in units of 80 ms; it has 19."""


async def transcribe_clip(stream: EngineStream) -> str:
    """Return the text of the final, and close the stream."""
    clip = known_clip()
    try:
        for units, kind in _BEGINNINGS:
            await stream.step(clip[: units * GRID_SAMPLES], kind)
        final = await stream.step(clip, StepKind.FINAL)
    finally:
        await stream.close()
    return final.text if final else ""
