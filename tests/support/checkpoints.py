"""Other forms of a Qwen3-ASR checkpoint: converted (`-hf`), in another number format, or hard on half precision.

Torch, safetensors and transformers are imported when called: only environments with an engine have them.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Weights = dict[str, Any]
"""Name → tensor."""

CONVERTED_NAMES = {
    "thinker.audio_tower.proj1.": "model.multi_modal_projector.linear_1.",
    "thinker.audio_tower.proj2.": "model.multi_modal_projector.linear_2.",
    "thinker.audio_tower.": "model.audio_tower.",
    "thinker.model.": "model.language_model.",
    "thinker.lm_head.": "lm_head.",
}
SHIFT = 2.0**14


def copy_checkpoint(
    source: Path, target: Path, dtype: str = "float32", change: Callable[[Weights], Weights] = dict
) -> Path:
    """Copy a checkpoint, with its weights changed.

    Args:
        source: folder in the original layout.
        target: folder to make.
        dtype: torch's name of the number format, `bfloat16`.
        change: takes and returns weights.
    """
    shutil.copytree(source, target)
    _rewrite(source, target, dtype, change)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    return target


def convert_checkpoint(
    source: Path, target: Path, dtype: str = "float32", change: Callable[[Weights], Weights] = dict
) -> Path:
    """Write a checkpoint in the `-hf` layout, as published beside the original one; arguments as above."""
    from transformers import AutoTokenizer, GenerationConfig, Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

    target.mkdir(parents=True)
    _rewrite(source, target, dtype, lambda weights: {_converted(n): w for n, w in change(weights).items()})
    thinker = json.loads((source / "config.json").read_text())["thinker_config"]
    text = {k: v for k, v in thinker["text_config"].items() if k not in ("rope_scaling", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": thinker["text_config"]["rope_theta"]}
    generation = GenerationConfig.from_pretrained(source)
    generation.save_pretrained(target)
    config = {
        "architectures": ["Qwen3ASRForConditionalGeneration"],
        "model_type": "qwen3_asr",
        "dtype": dtype,
        "audio_config": thinker["audio_config"] | {"model_type": "qwen3_asr_encoder"},
        "text_config": text | {"model_type": "qwen3", "rope_parameters": rope},
        "audio_token_id": thinker["audio_token_id"],
        "eos_token_id": generation.eos_token_id,
        "pad_token_id": generation.pad_token_id,
        "tie_word_embeddings": True,
    }
    (target / "config.json").write_text(json.dumps(config))
    template = json.loads((source / "chat_template.json").read_text())["chat_template"]
    tokenizer = AutoTokenizer.from_pretrained(source)
    Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer, chat_template=template).save_pretrained(target)
    return target


def write_defaults_out(folder: Path) -> Path:
    """Fill an original `config.json` with what the library of its authors writes there and nobody means."""
    defaults = {"pad_token_id": None, "top_k": 50, "return_dict": True, "id2label": {"0": "LABEL_0"}, "prefix": None}
    config = json.loads((folder / "config.json").read_text())
    thinker = config["thinker_config"]
    parts = {name: defaults | {"dtype": None} | thinker[name] for name in ("audio_config", "text_config")}
    (folder / "config.json").write_text(json.dumps(defaults | config | {"thinker_config": defaults | thinker | parts}))
    return folder


def beyond_half(weights: Weights) -> Weights:
    """Let numbers inside the language model grow too large for fp16, without changing what it computes in bf16.

    What one matrix multiplies by a power of two, the next one divides by it.
    """
    changed = dict(weights)
    for name in weights:
        if name.startswith("thinker.model.layers.") and name.endswith("mlp.up_proj.weight"):
            down = name.replace("up_proj", "down_proj")
            changed |= {name: weights[name] * SHIFT, down: weights[down] / SHIFT}
    return changed


def _rewrite(source: Path, target: Path, dtype: str, change: Callable[[Weights], Weights]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = change(load_file(source / "model.safetensors"))
    kind = getattr(torch, dtype)
    tensors = {name: tensor.to(kind).contiguous() for name, tensor in weights.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def _converted(name: str) -> str:
    for original, converted in CONVERTED_NAMES.items():
        if name.startswith(original):
            return converted + name.removeprefix(original)
    raise ValueError(f"no weight of Qwen3-ASR: {name}")
