"""The only file that touches transformers and torch: loads Qwen3-ASR, and decodes a batch of pieces greedily.

Prompts and mel are ours, the same as on vLLM; transformers has the model. Its class was made for converted
checkpoints (`-hf`); in the original layout the same weights have other names, which `_layout` translates while they
are loaded. Blocks. Imported only by `transformers.py`, when the engine starts; called in the queue's one thread.
"""

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
    StoppingCriteriaList,
)
from transformers.utils import cached_file
from transformers.utils import logging as library_log

from qwen3_asr_server.audio.mel import MELS, Features, LogMel, audio_tokens
from qwen3_asr_server.engines._qwen3_checkpoint import MIN_SAMPLES, context_encoder
from qwen3_asr_server.engines._qwen3_queue import Decode, Written
from qwen3_asr_server.engines._qwen3_torch import Chances, RowEnds, written
from qwen3_asr_server.text.prompt import PromptIds

_DTYPES: Final = {"auto": "auto", "half": torch.float16, "float": torch.float32}
_CHUNK_FRAMES: Final = 100
"""The encoder takes whole chunks; what a mask leaves out of the last one counts as padding."""
_ORIGINAL_NAMES: Final = {
    r"^thinker\.audio_tower\.proj1\.": "model.multi_modal_projector.linear_1.",
    r"^thinker\.audio_tower\.proj2\.": "model.multi_modal_projector.linear_2.",
    r"^thinker\.audio_tower\.": "model.audio_tower.",
    r"^thinker\.model\.": "model.language_model.",
    r"^thinker\.lm_head\.": "lm_head.",
}
"""Weights in the original layout → in transformers' own."""
_AUDIO_FIELDS: Final = (
    *("num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "output_dim"),
    *("n_window", "n_window_infer", "downsample_hidden_size", "activation_function", "scale_embedding"),
)
_TEXT_FIELDS: Final = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "attention_bias"),
    "tie_word_embeddings",
)
"""What transformers' class must be told; the rest of a configuration means something else there, or nothing."""


class TransformersModel:
    """A loaded model. Not safe to be called from two threads at once."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._ends = _end_tokens(model, tokenizer)
        self._prompt = PromptIds.from_encode(self.encode)
        self._context_ids = context_encoder(self.encode)
        self._mel = LogMel(MIN_SAMPLES)
        self._settings = GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=sorted(self._ends), pad_token_id=min(self._ends)
        )
        model.generation_config = self._settings  # what a checkpoint suggests besides is not greedy decoding

    @classmethod
    def load(cls, model_path: str, dtype: str) -> "TransformersModel":
        """Load weights to the best device there is.

        Args:
            model_path: hub name or folder, in the original layout or converted (`-hf`).
            dtype: `auto` (that of the checkpoint), `half` or `float`.

        Raises:
            OSError, ValueError: no weights there, or not of this model.
        """
        library_log.set_verbosity_error()
        library_log.disable_progress_bar()
        options = {"dtype": _DTYPES[dtype], **_layout(model_path)}
        model, report = Qwen3ASRForConditionalGeneration.from_pretrained(
            model_path, output_loading_info=True, **options
        )
        if report["missing_keys"]:
            raise ValueError("these are not the weights of a Qwen3-ASR model")
        tokenizer = AutoTokenizer.from_pretrained(model_path, config=model.config)
        return cls(model.to(_best_device()).eval(), tokenizer)

    @property
    def device(self) -> str:
        """Where it runs: `cpu`, `cuda:0`, `mps:0`."""
        return str(self._model.device)

    @property
    def dtype(self) -> str:
        """Number format of the weights, such as `bfloat16`."""
        return str(self._model.dtype).removeprefix("torch.")

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, with added tokens and nothing at the ends."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def read(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, with added tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode(self, batch: Sequence[Decode]) -> list[Written]:
        """Carry out some decodes at once; the longest of them decides how long that takes."""
        mels = [self._mel.whole(wanted.audio) for wanted in batch]
        prompts = [self._prompt_of(wanted, mel) for wanted, mel in zip(batch, mels, strict=True)]
        length = max(map(len, prompts))
        chances = Chances()
        with torch.inference_mode():
            sequences = self._model.generate(
                **self._inputs(prompts, mels),
                generation_config=self._settings,
                max_new_tokens=max(wanted.max_tokens for wanted in batch),
                stopping_criteria=StoppingCriteriaList([RowEnds(batch, length)]),
                logits_processor=LogitsProcessorList([chances]),
            )
        rows = zip(batch, sequences[:, length:].tolist(), chances.rows(), strict=True)
        return [written(row[: wanted.max_tokens], sure, self._ends) for wanted, row, sure in rows]

    def close(self) -> None:
        """Give the memory back."""
        del self._model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _prompt_of(self, wanted: Decode, mel: Features) -> list[int]:
        prompt = self._prompt
        header = prompt.language_headers[wanted.language] if wanted.language else None
        tokens = audio_tokens(mel.shape[1])
        return prompt.prompt_ids(self._context_ids(wanted.context), [tokens], header, wanted.prefix)

    def _inputs(self, prompts: Sequence[Sequence[int]], mels: Sequence[Features]) -> dict[str, torch.Tensor]:
        """Fill up to a rectangle: prompts at their beginning, mel at its end."""
        length = max(map(len, prompts))
        frames = -(-max(mel.shape[1] for mel in mels) // _CHUNK_FRAMES) * _CHUNK_FRAMES
        ids = np.full((len(prompts), length), self._settings.pad_token_id, np.int64)
        seen = np.zeros((len(prompts), length), np.int64)
        heard = np.zeros((len(prompts), frames), np.int64)
        features = np.zeros((len(prompts), MELS, frames), np.float32)
        for row, (prompt, mel) in enumerate(zip(prompts, mels, strict=True)):
            ids[row, length - len(prompt) :] = prompt
            seen[row, length - len(prompt) :] = 1
            heard[row, : mel.shape[1]] = 1
            features[row, :, : mel.shape[1]] = mel
        device = self._model.device
        return {
            "input_ids": torch.from_numpy(ids).to(device),
            "attention_mask": torch.from_numpy(seen).to(device),
            "input_features": torch.from_numpy(features).to(device, self._model.dtype),
            "input_features_mask": torch.from_numpy(heard).to(device),
        }


def _layout(model_path: str) -> dict[str, Any]:
    """Return what transformers must be told of a checkpoint in the original layout; nothing for its own.

    The rotary positions of text are those of transformers' class: three equal coordinates turn like one.
    """
    config = json.loads(Path(cached_file(model_path, "config.json")).read_text(encoding="utf-8"))
    if "thinker_config" not in config:
        return {}
    thinker = config["thinker_config"]
    audio, text = thinker["audio_config"], thinker["text_config"]
    rope = {"rope_type": "default", "rope_theta": text["rope_theta"]}
    converted = Qwen3ASRConfig(
        audio_config={"model_type": "qwen3_asr_encoder", **_only(audio, _AUDIO_FIELDS)},
        text_config={"model_type": "qwen3", "rope_parameters": rope, **_only(text, _TEXT_FIELDS)},
        audio_token_id=thinker["audio_token_id"],
        tie_word_embeddings=text.get("tie_word_embeddings", True),
        dtype=next(
            filter(None, (part.get(name) for part in (config, thinker) for name in ("dtype", "torch_dtype"))), None
        ),
    )
    return {"config": converted, "key_mapping": _ORIGINAL_NAMES}


def _only(config: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {name: config[name] for name in fields if config.get(name) is not None}


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    found = model.generation_config.eos_token_id
    listed = [found] if isinstance(found, int) else list(found or ())
    return frozenset([*listed, tokenizer.eos_token_id])


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
