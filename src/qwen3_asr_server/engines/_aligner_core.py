"""The aligner's way to vLLM: a pooling model that names a time class for every `<timestamp>` of its prompt.

One forward pass a request, many requests in one batch. vLLM's step pooling returns the rows of those tokens
only; of all tokens it would be 20 kB each. Memory is planned in bytes, because the recogniser has the rest of the
card. Written for vLLM 0.32. Imported by `_aligner`, when it starts; knows no words.
"""

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from vllm.config import PoolerConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from qwen3_asr_server.engines._aligner_memory import ALIGNER_BYTES, ALIGNER_KV_BYTES
from qwen3_asr_server.engines._vllm_audio import audio_prompt, can_build
from qwen3_asr_server.engines._vllm_cores import CoreStart
from qwen3_asr_server.engines._vllm_environment import ParentWatch, first_line
from qwen3_asr_server.engines._vllm_request import TokenIds, Window
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineNotReady
from vllm import PoolingParams

_log = logging.getLogger(__name__)

MAX_MODEL_LEN: Final = 4096
"""Tokens: a minute of audio is 780, and its text at the fastest some 1,500."""
MAX_WINDOWS: Final = 8
MAX_REQUESTS: Final = 32


@dataclass(frozen=True, slots=True)
class AlignerCoreOptions:
    """How to start vLLM."""

    model: str
    """Local folder or hub name."""
    dtype: str
    """`auto`, `half` or `float`."""
    extra: Mapping[str, Any] | None = None
    """More arguments for vLLM; tests use it."""


class AlignerCore:
    """A running engine core.

    Attributes:
        class_ms: how far apart the classes are, in ms.
        classes: how many there are.
    """

    def __init__(self, engine: AsyncLLM, start: CoreStart) -> None:
        self._engine = engine
        self._start = start
        self._names = itertools.count()
        config = engine.model_config.hf_config
        thinker = config.thinker_config
        self._pad = int(thinker.audio_token_id)
        self._before = (int(thinker.audio_start_token_id),)
        self._after = (int(thinker.audio_end_token_id),)
        self._stamp = int(config.timestamp_token_id)
        self._stopped = False
        self.class_ms = int(config.timestamp_segment_time)
        self.classes = int(thinker.classify_num)

    @classmethod
    def load(cls, options: AlignerCoreOptions, start: CoreStart) -> "AlignerCore":
        """Start the engine core; blocks for seconds to minutes, so call it in a thread.

        Raises:
            EngineNotReady: with a reason a user can act upon.
        """
        if not can_build():
            raise EngineNotReady("word times need vLLM 0.32: this version takes no direct input")
        if current_platform.is_cpu():
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        try:
            config = _arguments(options).create_engine_config()
            # Set here and not among the arguments: on the processor, vLLM's environment would override those.
            config.cache_config.kv_cache_memory_bytes = ALIGNER_KV_BYTES
            config.additional_config = ParentWatch()
            with start.alone():
                engine = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        except Exception as problem:
            _log.exception("the aligner did not start")
            raise EngineNotReady(f"the aligner did not start: {first_line(problem)}") from problem
        return cls(engine, start)

    @property
    def dead(self) -> bool:
        """Whether the engine core is gone; nothing can be asked any more."""
        return self._stopped or self._engine.errored

    def stop(self) -> None:
        """End the engine core; blocks until it is gone."""
        self._stopped = True
        self._engine.shutdown()
        self._start.join()
        del self._engine

    def encode(self, text: str) -> TokenIds:
        """Return the token ids of a word."""
        return tuple(self._engine.renderer.get_tokenizer().encode(text, add_special_tokens=False))

    async def classes_of(self, windows: Sequence[Window], units: Sequence[TokenIds]) -> list[int]:
        """Return the class of the start and of the end of each unit.

        Args:
            windows: all audio, in items of at most 8 s.
            units: token ids of each unit, at least one.

        Raises:
            EngineError: it could not be done; EngineCrashed when the engine core is gone.
        """
        if self.dead:
            raise EngineCrashed("The aligner is gone.")
        stamped = [token for unit in units for token in (*unit, self._stamp, self._stamp)]
        if len(stamped) + sum(window.tokens for window in windows) + 2 > MAX_MODEL_LEN:
            raise EngineError("The text is too long for its words to be placed.")
        prompt = audio_prompt(
            self._before,
            windows,
            (*self._after, *stamped),
            pad=self._pad,
            dtype=self._engine.model_config.dtype,
        )
        params = PoolingParams(task="token_classify", use_activation=False, step_tag_id=self._stamp)
        try:
            generator: Any = self._engine.encode(prompt, params, f"align-{next(self._names)}")
            async with aclosing(generator) as outputs:
                async for output in outputs:
                    return [int(best) for best in output.outputs.data.argmax(-1)]
        except EngineDeadError as problem:
            raise EngineCrashed("The aligner's process died.") from problem
        except (EngineGenerateError, ValueError) as problem:
            _log.warning("vLLM refused a text to align: %s", type(problem.__cause__ or problem).__name__)
            raise EngineError("The words could not be placed.") from problem
        raise EngineCrashed("The aligner gave no answer.")


def _arguments(options: AlignerCoreOptions) -> AsyncEngineArgs:
    settings: dict[str, Any] = {
        "model": options.model,
        "runner": "pooling",
        "hf_overrides": {"architectures": ["Qwen3ASRForcedAlignerForTokenClassification"]},
        "pooler_config": PoolerConfig(tok_pooling_type="STEP"),
        "dtype": {"float": "float32"}.get(options.dtype, options.dtype),
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": MAX_REQUESTS,
        "max_num_batched_tokens": MAX_MODEL_LEN,
        "limit_mm_per_prompt": {"audio": MAX_WINDOWS},
        "mm_processor_cache_gb": 0,
        "enable_prefix_caching": False,
        "enable_log_requests": False,
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        settings |= {"block_size": 32, "enforce_eager": True}
    else:
        # vLLM asks at its start whether this share of the card is free; the KV cache does not depend on it.
        total = current_platform.get_device_total_memory()
        settings["gpu_memory_utilization"] = min(1.0, ALIGNER_BYTES / total)
    return AsyncEngineArgs(**settings | dict(options.extra or {}))
