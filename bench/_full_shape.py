"""A folder that vLLM takes for Qwen3-ASR-0.6B: the published shape, without weights.

The tokenizer is the tiny checkpoint's, whose ids lie inside the published vocabulary. vLLM fills such a model with
random numbers (`load_format="dummy"`). Used by `step_cost.py`.
"""

import json
import shutil
from pathlib import Path

from _tiny_speech import CHECKPOINT

AUDIO_SHAPE = {
    "d_model": 896,
    "encoder_layers": 18,
    "encoder_attention_heads": 14,
    "encoder_ffn_dim": 3584,
    "output_dim": 1024,
    "downsample_hidden_size": 480,
}
TEXT_SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
ROPE_SECTIONS = [24, 20, 20]


def write_full_shape(folder: Path) -> None:
    """Write configuration and tokenizer into an empty folder."""
    for path in CHECKPOINT.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, folder)
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "bfloat16"
    config["thinker_config"]["audio_config"] |= AUDIO_SHAPE
    text = config["thinker_config"]["text_config"]
    text |= TEXT_SHAPE
    text["rope_scaling"]["mrope_section"] = ROPE_SECTIONS
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
