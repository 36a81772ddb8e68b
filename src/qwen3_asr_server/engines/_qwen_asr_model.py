"""The only file that touches the package qwen-asr: loads its model and decodes one piece greedily.

Prompt and mel are the package's own (its chat template, its processor), so that its answers can be held against
those of the other engines. It pins an old transformers and needs an environment of its own. Blocks. Imported only by
`qwen_asr.py`, when the engine starts; called in the queue's one thread.
"""

import gc
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from qwen_asr import Qwen3ASRModel
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import logging as library_log

from qwen3_asr_server.engines._qwen3_checkpoint import MIN_SAMPLES, context_encoder
from qwen3_asr_server.engines._qwen3_queue import Decode, Written
from qwen3_asr_server.engines._qwen3_torch import Chances, RowEnds, written
from qwen3_asr_server.text.prompt import forced_header

_DTYPES: Final = {"auto": "auto", "half": torch.float16, "float": torch.float32}


class QwenAsrModel:
    """A loaded model of the official package. Not safe to be called from two threads at once."""

    def __init__(self, package: Any, ends: Sequence[int]) -> None:
        self._package = package
        self._tokenizer = package.processor.tokenizer
        self._ends = frozenset([*ends, self._tokenizer.eos_token_id])
        self._context_ids = context_encoder(self._encode)

    @classmethod
    def load(cls, model_path: str, dtype: str) -> "QwenAsrModel":
        """Load weights, to a GPU if there is one.

        Args:
            model_path: hub name or folder, in the original layout.
            dtype: `auto` (that of the checkpoint), `half` or `float`.

        Raises:
            OSError, ValueError: no weights there, or not of this model.
        """
        library_log.set_verbosity_error()
        library_log.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        package = Qwen3ASRModel.from_pretrained(model_path, dtype=_DTYPES[dtype], device_map=device)
        _keep_windows(package.model.thinker.audio_tower)
        ends = GenerationConfig.from_pretrained(model_path).eos_token_id
        return cls(package, [ends] if isinstance(ends, int) else list(ends or ()))

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._package.device)

    @property
    def dtype(self) -> str:
        """Number format of the weights."""
        return str(self._package.dtype).removeprefix("torch.")

    def read(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, with added tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode(self, batch: Sequence[Decode]) -> list[Written]:
        """Carry out decodes, one after the other."""
        return [self._decode(wanted) for wanted in batch]

    def close(self) -> None:
        """Give the memory back."""
        del self._package
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, wanted: Decode) -> Written:
        package, audio = self._package, wanted.audio
        audio = np.pad(audio, (0, max(0, MIN_SAMPLES - len(audio))))
        inputs = package.processor(text=[self._prompt(wanted)], audio=[audio], return_tensors="pt", padding=True)
        if wanted.prefix:
            given = torch.tensor([wanted.prefix])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], given], dim=1)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(given)], dim=1)
        length = inputs["input_ids"].shape[1]
        chances = Chances()
        with torch.inference_mode():
            sequences = package.model.generate(
                **inputs.to(package.device).to(package.dtype),
                max_new_tokens=wanted.max_tokens,
                eos_token_id=sorted(self._ends),
                pad_token_id=min(self._ends),
                stopping_criteria=StoppingCriteriaList([RowEnds([wanted], length)]),
                logits_processor=LogitsProcessorList([chances]),
            ).sequences
        return written(sequences[0, length:].tolist(), chances.rows()[0], self._ends)

    def _prompt(self, wanted: Decode) -> str:
        messages = [
            {"role": "system", "content": self.read(self._context_ids(wanted.context))},
            {"role": "user", "content": [{"type": "audio", "audio": ""}]},
        ]
        prompt = self._package.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return str(prompt) + (forced_header(wanted.language) if wanted.language else "")


def _keep_windows(encoder: Any) -> None:
    """Let the encoder attend to 8 s at a time, as it does on vLLM.

    The package makes a mask for that and forgets to apply it, except through FlashAttention 2.
    """

    def with_mask(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return inputs, options | {"attention_mask": encoder._prepare_attention_mask(*inputs)}

    for layer in encoder.layers:
        layer.register_forward_pre_hook(with_mask, with_kwargs=True)
