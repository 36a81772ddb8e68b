"""Qwen3-ASR on vLLM: every session's steps in one continuously batched engine, on a GPU or on the processor.

It starts and stops the engine core (`_vllm_adapter`, the only part that touches vLLM, imported when it starts), checks
at the start that it transcribes, and opens streams (`_vllm_stream`). Made by `load_engine("vllm", options)`; knows
nothing of sessions or settings.
"""

import asyncio
import importlib.util
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from qwen3_asr_server.audio.mel import LogMel
from qwen3_asr_server.domain import EngineInfo, StreamOptions
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._qwen3_checkpoint import (
    MIN_SAMPLES,
    context_encoder,
    describe,
    require_text,
)
from qwen3_asr_server.engines._vllm_cores import CoreStart, load_core
from qwen3_asr_server.engines._vllm_greeting import transcribe_clip
from qwen3_asr_server.engines._vllm_room import KvRoom
from qwen3_asr_server.engines._vllm_stream import Tools, VllmStream
from qwen3_asr_server.errors import EngineNotReady, InvalidValue
from qwen3_asr_server.text.prompt import PromptIds

if TYPE_CHECKING:
    from qwen3_asr_server.engines._vllm_adapter import VllmCore

_log = logging.getLogger(__name__)

GREETING_S: Final = 60.0
"""Longest decode of the known clip: the first ones are slow."""


class VllmEngine:
    """vLLM behind the engine interface.

    Args:
        options: all but `max_decoders` are read.
        verify: finals by comparing the last answer with the model's own choices, which gives the same text in fewer
            steps; False decodes them from nothing.
        vllm_arguments: more arguments for vLLM, for tests and benchmarks.
    """

    def __init__(
        self, options: EngineOptions, *, verify: bool = True, vllm_arguments: dict[str, object] | None = None
    ) -> None:
        self._options = options
        self._verify = verify
        self._arguments = vllm_arguments
        self._core: VllmCore | None = None
        self._tools: Tools | None = None
        self._info = describe("vllm", "vLLM", options.model_path, "many live sessions at once")

    @property
    def info(self) -> EngineInfo:
        """What it is and can do."""
        return self._info

    @property
    def core(self) -> "VllmCore":
        """The running engine core.

        Raises:
            EngineNotReady: not started, or stopped.
        """
        if self._core is None:
            raise EngineNotReady("the engine is not running")
        return self._core

    @property
    def tools(self) -> Tools:
        """What all streams share.

        Raises:
            EngineNotReady: not started, or stopped.
        """
        if self._tools is None:
            raise EngineNotReady("the engine is not running")
        return self._tools

    @property
    def dead(self) -> bool:
        """Whether vLLM's processes have died though nobody stopped them; seen at once, also while nothing runs."""
        return self._core is not None and self._core.dead

    @property
    def full(self) -> bool:
        """Whether a piece that begins now would find no room in the KV cache."""
        return self._tools is not None and self._tools.room.full

    def stats(self) -> dict[str, int | float]:
        """Return what it has done since it started, and how its KV cache is used; empty while it does not run."""
        if self._core is None or self._tools is None:
            return {}
        return self._core.counters.flat() | self._tools.room.flat()

    async def start(self) -> None:
        """Load the weights, warm up, and check that a known clip becomes text."""
        if self._core is not None:
            return
        if importlib.util.find_spec("vllm") is None:
            raise EngineNotReady("the package 'vllm' is not installed: install the extra 'vllm'")
        began = time.monotonic()
        core = await self._load()
        self._core, self._tools = core, self._make_tools(core)
        try:
            await self._test_itself(core)
        except BaseException:
            await self.stop()
            raise
        _log.info(
            "vLLM runs",
            extra={"seconds": round(time.monotonic() - began, 1), "direct": core.direct, "verify": core.can_verify},
        )

    async def stop(self) -> None:
        """End vLLM's processes; open streams fail."""
        core, tools, self._core, self._tools = self._core, self._tools, None, None
        if tools is not None:
            tools.room.close(EngineNotReady("the engine was stopped"))
        if core is not None:
            await core.abort_all()
            await asyncio.to_thread(core.stop)

    def open_stream(self, options: StreamOptions) -> VllmStream:
        """Begin a piece.

        Args:
            options: control tokens in the context are taken out.

        Raises:
            EngineNotReady: not started, or stopped.
            InvalidValue: a language that the weights cannot be told to expect.
        """
        tools = self.tools
        if options.language is not None and options.language not in self._info.languages:
            raise InvalidValue(f"the model cannot be set to the language '{options.language}'", param="language")
        return VllmStream(
            tools, options.language, options.context, options.expected_language, recorded=options.recorded
        )

    async def _load(self) -> "VllmCore":
        return await load_core(lambda start: _load_core(self._options, self._arguments, start))

    def _make_tools(self, core: "VllmCore") -> Tools:
        tokenizer = core.tokenizer

        def encode(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False))

        def decode(ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

        return Tools(
            core=core,
            prompt=PromptIds.from_encode(encode),
            decode=decode,
            context_ids=context_encoder(encode),
            mel=LogMel(MIN_SAMPLES),
            languages=self._info.languages,
            max_new_tokens=self._options.max_new_tokens,
            new_nonce=lambda: secrets.token_hex(12),
            verify=self._verify,
            room=KvRoom(
                core.kv_tokens, self._options.longest_interval_s, self._options.queue_timeout_s, core.counters.computed
            ),
            decode_timeout_s=self._options.decode_timeout_s,
        )

    async def _test_itself(self, core: "VllmCore") -> None:
        """Go through partial, candidate and final by every route into vLLM, and look at the text."""
        direct = core.direct
        text = await self._transcribe_clip(core, direct=False)
        require_text(text)
        if direct and not await self._direct_gives(core, text):
            _log.warning("vLLM takes direct input otherwise than expected; its renderer is used, which is slower")
            core.direct = False

    async def _direct_gives(self, core: "VllmCore", text: str) -> bool:
        try:
            return await self._transcribe_clip(core, direct=True) == text
        except Exception:
            # In another version of vLLM anything may be missing.
            if core.dead:
                raise
            _log.exception("direct input to vLLM failed")
            return False

    async def _transcribe_clip(self, core: "VllmCore", direct: bool) -> str:
        core.direct = direct
        return await transcribe_clip(VllmStream(replace(self.tools, decode_timeout_s=GREETING_S), None, ""))


def auto_reason(options: EngineOptions) -> str | None:
    """Say why `ENGINE=auto` should take this engine: vLLM is installed and a GPU answers."""
    if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return f"vLLM is installed and a GPU answers ({torch.cuda.get_device_name()})"


def _load_core(options: EngineOptions, arguments: dict[str, object] | None, start: CoreStart) -> "VllmCore":
    """Import vLLM and start it; both block."""
    from qwen3_asr_server.engines import _vllm_environment

    _vllm_environment.prepare()
    from qwen3_asr_server.engines._vllm_adapter import CoreOptions, VllmCore

    return VllmCore.load(
        CoreOptions(
            options.model_path,
            options.dtype,
            options.gpu_memory_utilization,
            kv_cache_bytes=options.kv_cache_bytes,
            reserved_bytes=options.reserved_bytes,
            extra=arguments,
        ),
        start,
    )


ENGINE = VllmEngine
