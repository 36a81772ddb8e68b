"""The recogniser's way to vLLM: starts its engine core, hands it requests, reads its answers.

The input is built directly (`_vllm_audio`). Where that is not possible, in another version of vLLM, its renderer does
it, with our keys; `direct` says which of them is used. A lost cache entry shows as a
finish reason `error`: all data is sent again, once, and never becomes an empty text.

Written for vLLM 0.32. Imported only by `vllm.py`, when the engine starts; knows no streams.
"""

import itertools
import logging
import math
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.platforms import current_platform
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from qwen3_asr_server.engines._aligner_memory import recogniser_share
from qwen3_asr_server.engines._vllm_audio import audio_prompt, can_build
from qwen3_asr_server.engines._vllm_cores import CoreStart
from qwen3_asr_server.engines._vllm_environment import ParentWatch, first_line
from qwen3_asr_server.engines._vllm_request import (
    ENDINGS,
    LOOP_COUNT,
    LOOP_TOKENS,
    Answer,
    Counters,
    Ending,
    Request,
    TokenIds,
    Verdict,
)
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineNotReady
from vllm import SamplingParams

try:
    from vllm.sampling_params import RepetitionDetectionParams
except ImportError:
    RepetitionDetectionParams = None

_log = logging.getLogger(__name__)

_VERIFY_FIELDS: Final = {"prompt_logprobs", "flat_logprobs", "skip_reading_prefix_cache", "stream_interval"}
_LARGE_CARD_BYTES: Final = 32 << 30
_NEVER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """How to start vLLM."""

    model: str
    """Local folder or hub name."""
    dtype: str
    """`auto`, `half` or `float`."""
    gpu_memory_utilization: float
    max_model_len: int = 5120
    """Tokens: a piece of 28 s needs about 600, the rest is for context."""
    max_windows: int = 5
    max_requests: int = 128
    """Requests that run at once: three times the partials in flight, and finals."""
    encoder_cache_tokens: int = 65_536
    """Audio embeddings kept, 2 to 4 KB each: those of some 900 steps. With half of it closed windows of 100 sessions
    were encoded twice; vLLM's own default holds 19 windows."""
    kv_cache_bytes: int | None = None
    """Size of the KV cache; None leaves it to `gpu_memory_utilization`."""
    reserved_bytes: int = 0
    """What of the share of the card belongs to the aligner."""
    extra: Mapping[str, Any] | None = None
    """More arguments for vLLM; tests use it."""


class VllmCore:
    """A running engine core; see `Core` for what streams may ask."""

    def __init__(self, engine: AsyncLLM, start: CoreStart) -> None:
        self._engine = engine
        self._start = start
        self._names = itertools.count()
        self._fields = frozenset(SamplingParams.__struct_fields__)
        self._ends = _end_tokens(engine)
        self._open: set[str] = set()
        self._dead = False
        self.direct = can_build()
        self.counters = Counters()

    @classmethod
    def load(cls, options: CoreOptions, start: CoreStart) -> "VllmCore":
        """Start the engine core; blocks for seconds to minutes, so call it in a thread.

        Raises:
            EngineNotReady: with a reason a user can act upon.
        """
        if current_platform.is_cpu():
            # The first checked draft would compile a kernel for half a minute, and needs a C++ compiler for it.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        try:
            config = _arguments(options).create_engine_config()
            config.scheduler_config.encoder_cache_size = options.encoder_cache_tokens
            # Set here and not among the arguments: on the processor, vLLM's environment would override those.
            config.cache_config.kv_cache_memory_bytes = (
                options.kv_cache_bytes or config.cache_config.kv_cache_memory_bytes
            )
            config.additional_config = ParentWatch()
            with start.alone():
                engine = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        except Exception as problem:
            _log.exception("vLLM did not start")
            raise EngineNotReady(f"vLLM did not start: {first_line(problem)}") from problem
        held = engine.vllm_config.scheduler_config.encoder_cache_size
        if held != options.encoder_cache_tokens:
            engine.shutdown()
            raise EngineNotReady(f"this version of vLLM keeps {held} audio tokens, too few")
        return cls(engine, start)

    def stop(self) -> None:
        """End the engine core and its workers; blocks until they are gone."""
        self._dead = True
        self._engine.shutdown()
        self._start.join()
        del self._engine

    @property
    def can_verify(self) -> bool:
        """Whether drafts can be compared with the model's own choices."""
        return self.direct and self._fields >= _VERIFY_FIELDS

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the KV cache holds; None where vLLM does not say."""
        cache = self._engine.vllm_config.cache_config
        known = getattr(cache, "kv_cache_size_tokens", None)
        return known or (cache.num_gpu_blocks or 0) * cache.block_size or None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the checkpoint."""
        return self._engine.renderer.get_tokenizer()

    @property
    def dead(self) -> bool:
        """Whether the engine core is gone; nothing can be asked any more."""
        return self._dead or self._engine.errored

    @property
    def vllm(self) -> AsyncLLM:
        """The engine itself, for tests and benchmarks."""
        return self._engine

    async def abort_all(self) -> None:
        """End every request; whoever waits for one is told that it failed."""
        self._dead = True
        await self._engine.abort(list(self._open))
        if self._engine.output_handler is not None:
            self._engine.output_handler.cancel()

    async def generate(self, request: Request) -> Answer:
        """Decode, see `Core.generate`."""
        params = self._params(request, output_kind=RequestOutputKind.FINAL_ONLY)
        async with aclosing(self._outputs(request, request.after, params)) as outputs:
            async for output in outputs:
                return self._answer(output)
        raise EngineCrashed("The recogniser gave no answer.")

    async def verify(self, request: Request, draft: TokenIds) -> Verdict:
        """Compare a draft with the model's own choices, see `Core.verify`."""
        params = self._params(
            request,
            prompt_logprobs=1,
            flat_logprobs=True,
            skip_reading_prefix_cache=False,
            output_kind=RequestOutputKind.CUMULATIVE,
            stream_interval=_NEVER,
        )
        verdict: Verdict | None = None
        self.counters.verified += 1
        async with aclosing(self._outputs(request, request.after + draft, params)) as outputs:
            async for output in outputs:
                verdict = verdict or self._compare(output, draft, request.chances)
                if verdict.agreed < len(draft):
                    self.counters.corrected += 1
                    self.counters.prompt_tokens += len(output.prompt_token_ids)
                    self.counters.cached_tokens += output.num_cached_tokens or 0
                    return verdict
                if output.finished:
                    return replace(verdict, continuation=self._answer(output))
        raise EngineCrashed("The recogniser gave no answer.")

    # Requests

    async def _outputs(self, request: Request, after: TokenIds, params: SamplingParams) -> AsyncGenerator[Any, None]:
        """Yield vLLM's outputs; a request whose audio was forgotten is sent again, once, with all of it."""
        self.counters.requests += 1
        for attempt in range(2):
            if attempt:
                self.counters.resent += 1
                request.delivered.clear()
            async with aclosing(self._send(request, after, params)) as outputs:
                async for output in outputs:
                    if output.outputs[0].finish_reason == "error":
                        break
                    request.delivered.update(window.key for window in request.windows)
                    yield output
                else:
                    return
        raise EngineError("The recogniser lost the audio of this utterance.")

    async def _send(self, request: Request, after: TokenIds, params: SamplingParams) -> AsyncGenerator[Any, None]:
        if self.dead:
            raise EngineCrashed("The recogniser is gone.")
        name = f"{request.kind.name.lower()}-{next(self._names)}"
        self._open.add(name)
        try:
            source = self._direct_input(request, after) if self.direct else await self._rendered_input(request, after)
            generator: Any = self._engine.generate(source, params, name, priority=request.priority)
            async with aclosing(generator) as outputs:
                async for output in outputs:
                    yield output
        except EngineDeadError as problem:
            self._dead = True
            raise EngineCrashed("The recogniser's process died.") from problem
        except (EngineGenerateError, ValueError) as problem:
            if self.dead:
                raise EngineCrashed("The recogniser's process died.") from problem
            _log.warning("vLLM refused a request: %s", type(problem.__cause__ or problem).__name__)
            raise EngineError("The recogniser could not decode this audio.") from problem
        finally:
            self._open.discard(name)

    def _direct_input(self, request: Request, after: TokenIds) -> Any:
        source = audio_prompt(
            request.before,
            request.windows,
            after,
            pad=self._audio_token,
            dtype=self._engine.model_config.dtype,
            delivered=request.delivered,
        )
        source["arrival_time"] = request.asked_at
        return source

    async def _rendered_input(self, request: Request, after: TokenIds) -> Any:
        prompt = TokensPrompt(
            prompt_token_ids=[*request.before, *[self._audio_token] * len(request.windows), *after],
            multi_modal_data={"audio": [window.samples for window in request.windows]},
            multi_modal_uuids={"audio": [window.key for window in request.windows]},
        )
        parsed = parse_model_prompt(self._engine.model_config, prompt)
        (source,) = await self._engine.renderer.render_cmpl_async([parsed])
        source["arrival_time"] = request.asked_at
        return source

    def _params(self, request: Request, **more: Any) -> SamplingParams:
        if request.chances and "flat_logprobs" in self._fields:
            more |= {"logprobs": 0, "flat_logprobs": True}
        if RepetitionDetectionParams is not None and "repetition_detection" in self._fields:
            more["repetition_detection"] = RepetitionDetectionParams(
                max_pattern_size=LOOP_TOKENS, min_pattern_size=1, min_count=LOOP_COUNT
            )
        return SamplingParams(temperature=0.0, max_tokens=request.max_tokens, detokenize=False, skip_clone=True, **more)

    @property
    def _audio_token(self) -> int:
        return int(self._engine.model_config.hf_config.thinker_config.audio_token_id)

    # Answers

    def _answer(self, output: Any) -> Answer:
        completion = output.outputs[0]
        ids = tuple(completion.token_ids)
        while ids and ids[-1] in self._ends:
            ids = ids[:-1]
        ending = ENDINGS.get(completion.finish_reason)
        if ending is None:
            raise EngineError(f"The recogniser ended with {completion.finish_reason!r}.")
        found = completion.logprobs
        chances = tuple(_chance(found.logprobs[begin]) for begin in found.start_indices[: len(ids)]) if found else ()
        answer = Answer(ids, ending, len(output.prompt_token_ids), output.num_cached_tokens or 0, chances)
        counters = self.counters
        counters.prompt_tokens += answer.prompt_tokens
        counters.cached_tokens += answer.cached_tokens
        counters.new_tokens += len(completion.token_ids)
        counters.cut += ending is Ending.LENGTH
        return answer

    def _compare(self, output: Any, draft: TokenIds, with_chances: bool) -> Verdict:
        rows = output.prompt_logprobs
        first = len(output.prompt_token_ids) - len(draft)
        if (output.num_cached_tokens or 0) > first:
            # What the prefix cache covers was not computed: its rows are memory that nobody has written.
            raise EngineError("The recogniser could not check this text.")
        chances: list[float] = []
        for place, token in enumerate(draft):
            # A row holds the token that stands there and then the model's first choice.
            last = rows.end_indices[first + place] - 1
            choice = rows.token_ids[last]
            if with_chances:
                chances.append(_chance(rows.logprobs[last]))
            if choice != token:
                return Verdict(place, None if choice in self._ends else choice, None, tuple(chances))
        return Verdict(len(draft), None, None, tuple(chances))


def _arguments(options: CoreOptions) -> AsyncEngineArgs:
    settings: dict[str, Any] = {
        "model": options.model,
        "dtype": {"float": "float32"}.get(options.dtype, options.dtype),
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_requests,
        "max_num_batched_tokens": _batched_tokens(),
        "limit_mm_per_prompt": {"audio": options.max_windows},
        "mm_processor_cache_gb": 1,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "enable_log_requests": False,
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        # The processor's kernels want blocks of 32, and with its default of 128 short prompts are never cached.
        settings |= {"block_size": 32, "enforce_eager": True}
    elif options.reserved_bytes:
        total = current_platform.get_device_total_memory()
        share = recogniser_share(options.gpu_memory_utilization, options.reserved_bytes, total)
        settings["gpu_memory_utilization"] = share
    return AsyncEngineArgs(**settings | dict(options.extra or {}))


def _chance(log_probability: float) -> float:
    return min(1.0, math.exp(log_probability))


def _batched_tokens() -> int:
    """Return how many tokens a step of vLLM may take: what is running delays a final by a step.

    A full step should take 25 ms at most. That is an estimate by the size of the card; nothing was measured on one.
    """
    if current_platform.is_cpu():
        return 2048
    return 4096 if current_platform.get_device_total_memory() >= _LARGE_CARD_BYTES else 1024


def _end_tokens(engine: AsyncLLM) -> frozenset[int]:
    found = engine.model_config.try_get_generation_config().get("eos_token_id", [])
    listed = [found] if isinstance(found, int) else list(found)
    return frozenset([*listed, engine.renderer.get_eos_token_id()])
