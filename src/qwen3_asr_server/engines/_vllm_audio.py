"""Prompts with audio, built directly for vLLM's engine core: token ids, our own keys, mel of new windows only.

vLLM's renderer would hash, process and send every window again at each request. `_vllm_adapter` and `_aligner_core`
build their requests here; knows neither of them. Imports vLLM, so it is imported only when an engine starts.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

from qwen3_asr_server.engines._vllm_request import TokenIds, Window

try:
    from vllm.inputs.engine import mm_input
except ImportError:
    mm_input = None


def can_build() -> bool:
    """Return whether this version of vLLM takes such prompts."""
    return mm_input is not None


def audio_prompt(
    before: TokenIds,
    windows: Sequence[Window],
    after: TokenIds,
    *,
    pad: int,
    dtype: torch.dtype,
    delivered: Collection[str] = (),
) -> Any:
    """Return an input for vLLM's engine core.

    Args:
        before: token ids before the audio.
        windows: the audio.
        after: token ids behind it.
        pad: the token that stands in its place.
        dtype: of the model.
        delivered: keys of windows that the engine core has, which are named only.
    """
    ids, places, items = list(before), [], []
    for window in windows:
        places.append(PlaceholderRange(offset=len(ids), length=window.tokens))
        items.append(None if window.key in delivered else _item(window, dtype))
        ids += [pad] * window.tokens
    keys = [window.key for window in windows]
    ids += after
    return mm_input(ids, MultiModalKwargsItems({"audio": items}), {"audio": keys}, {"audio": places})


def _item(window: Window, dtype: torch.dtype) -> Any:
    frames = window.mel.shape[1]
    length = torch.tensor([frames])
    fields = {
        "input_audio_features": torch.from_numpy(window.mel).to(dtype),
        "feature_attention_mask": torch.ones((1, frames), dtype=torch.int32),
        "audio_feature_lengths": length,
    }
    layout = {
        "input_audio_features": MultiModalFieldConfig.flat_from_sizes("audio", length, dim=1),
        "feature_attention_mask": MultiModalFieldConfig.batched("audio", keep_on_cpu=True),
        "audio_feature_lengths": MultiModalFieldConfig.batched("audio", keep_on_cpu=True),
    }
    return MultiModalKwargsItems.from_hf_inputs(fields, layout)["audio"][0]
