"""What the official package writes: run in the environment of `scripts/qwen_asr_env.sh`, by `tests/vllm`.

    python qwen_asr_reference.py CHECKPOINT AUDIO.npz IDS.json

Uses the package as its own `transcribe` does (its prompt, its processor, its model), and writes token ids instead of
text: for each array of AUDIO a list, in the order of their names; once as the package is, and once with its encoder
kept to windows of 8 s. It has a mask for that, which it applies only through FlashAttention 2, so not on a processor.
Knows nothing of this project.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from qwen_asr import Qwen3ASRModel

MAX_TOKENS = 400
SHORTEST = 8_000
"""Samples to which the package fills up what is shorter, when it splits audio into chunks."""


def main(checkpoint: str, audio: str, target: str) -> None:
    """Decode every clip alone, greedily."""
    model = Qwen3ASRModel.from_pretrained(checkpoint, dtype=torch.float32)
    with np.load(audio) as archive:
        clips = [archive[name] for name in sorted(archive.files)]
    found = {"as_it_is": [ids_of(model, clip) for clip in clips]}
    keep_windows(model.model.thinker.audio_tower)
    found["in_windows"] = [ids_of(model, clip) for clip in clips]
    Path(target).write_text(json.dumps(found), encoding="utf-8")


def keep_windows(encoder: torch.nn.Module) -> None:
    """Give every layer the mask that the package makes and forgets."""

    def with_mask(_: torch.nn.Module, inputs: tuple, options: dict) -> tuple[tuple, dict]:
        return inputs, options | {"attention_mask": encoder._prepare_attention_mask(*inputs)}

    for layer in encoder.layers:
        layer.register_forward_pre_hook(with_mask, with_kwargs=True)


def ids_of(model: Qwen3ASRModel, samples: "np.ndarray") -> list[int]:
    """Return what the model writes, without the token that ends the text."""
    samples = np.pad(samples, (0, max(0, SHORTEST - len(samples))))
    prompt = model._build_text_prompt(context="", force_language=None)
    inputs = model.processor(text=[prompt], audio=[samples], return_tensors="pt", padding=True)
    ends = model.processor.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    with torch.no_grad():
        written = model.model.generate(
            **inputs, max_new_tokens=MAX_TOKENS, eos_token_id=ends, pad_token_id=ends[0]
        ).sequences
    ids = written[0, inputs["input_ids"].shape[1] :].tolist()
    assert ids[-1] in ends, "it found no end"
    return ids[:-1]


if __name__ == "__main__":
    main(*sys.argv[1:])
