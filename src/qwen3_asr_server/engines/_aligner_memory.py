"""How a card is shared by the recogniser and the forced aligner.

`GPU_MEMORY_UTILIZATION` is the share of both. The aligner, which is loaded first, has a fixed number of bytes; the
recogniser has the rest. The aligner's KV cache is given in bytes too, so neither depends on what the other happens
to use when it starts. Knows no vLLM; `_aligner_core` and `_vllm_adapter` ask.
"""

from typing import Final

from qwen3_asr_server.errors import EngineNotReady

ALIGNER_KV_BYTES: Final = 1 << 30
"""9,000 tokens of the published 0.6B aligner: a dozen pieces of 28 s at once."""
ALIGNER_BYTES: Final = 4 << 30
"""Its weights in 16 bits (1.8 GB), its KV cache, and what a forward pass and CUDA itself take."""
_LEAST: Final = 0.05


def recogniser_share(share: float, reserved_bytes: int, total_bytes: int) -> float:
    """Return the share of the card that is left for the recogniser.

    Args:
        share: of both, in (0, 1].
        reserved_bytes: what the aligner takes; 0 without one.
        total_bytes: of the card.

    Raises:
        EngineNotReady: nothing is left.
    """
    left = share - reserved_bytes / total_bytes
    if left < _LEAST:
        needed = reserved_bytes / total_bytes + _LEAST
        raise EngineNotReady(
            f"GPU_MEMORY_UTILIZATION leaves no room beside the aligner: set it above {needed:.2f}, or WORD_TIMES=false"
        )
    return left
