"""Qwen3-ASR on one or several `vllm serve`: the streams of the engine `vllm`, with vLLM somewhere else.

So several web processes share several GPUs. It reads the tokenizer, finds out which servers work, greets each with a
known clip before it gets sessions, and looks after those that are lost until they are back. What a stream asks of its
server is in `_vllm_http_core`. Made by `load_engine("vllm_http", options)`; knows nothing of sessions or settings, and
imports its libraries when it starts.
"""

import asyncio
import importlib.util
import logging
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from qwen3_asr_server.audio.mel import LogMel
from qwen3_asr_server.domain import EngineInfo, StreamOptions
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._qwen3_checkpoint import (
    MIN_SAMPLES,
    context_encoder,
    describe,
    require_language,
    require_text,
)
from qwen3_asr_server.engines._vllm_greeting import transcribe_clip
from qwen3_asr_server.engines._vllm_http_servers import Fleet, Server
from qwen3_asr_server.engines._vllm_stream import Tools, VllmStream
from qwen3_asr_server.errors import EngineError, EngineNotReady
from qwen3_asr_server.text.prompt import PromptIds

if TYPE_CHECKING:
    from qwen3_asr_server.engines._vllm_http_core import RemoteCore, Shared
    from qwen3_asr_server.engines._vllm_http_vocabulary import Vocabulary

_log = logging.getLogger(__name__)

GREETING_S: Final = 60.0
"""Longest time for the known clip: a server's first requests are slow."""
LOOK_S: Final = 2.0
"""Interval between two looks at a server that works."""

_LIBRARIES: Final = ("httpx", "msgspec", "tokenizers")


class RemoteStream(VllmStream):
    """The decoding of one piece, see `EngineStream`."""

    def __init__(self, core: "RemoteCore", tools: Tools, options: StreamOptions) -> None:
        super().__init__(
            replace(tools, core=core),
            options.language,
            options.context,
            options.expected_language,
            recorded=options.recorded,
        )
        self._core = core

    async def close(self) -> None:
        """Forget the audio and give the seat at the server back."""
        await super().close()
        self._core.leave()


class VllmHttpEngine:
    """Servers of vLLM behind the engine interface.

    Args:
        options: the model's path, the number format, the tokens of a step, the timeouts and the servers are read.
        verify: see `VllmEngine`.
    """

    def __init__(self, options: EngineOptions, *, verify: bool = True) -> None:
        self._options = options
        self._verify = verify
        self._info = describe("vllm_http", "remote vLLM servers", options.model_path, "many live sessions at once")
        self._fleet = Fleet(options.server_urls)
        self._shared: Shared | None = None
        self._tools: Tools | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def info(self) -> EngineInfo:
        """What it is and can do."""
        return self._info

    @property
    def fleet(self) -> Fleet:
        """The servers."""
        return self._fleet

    @property
    def full(self) -> bool:
        """Whether a piece that begins now would find no server."""
        return self._shared is not None and not self._fleet.up

    def stats(self) -> dict[str, int | float]:
        """Return what was done since the start, and which servers are up; empty while it does not run."""
        return {**self._shared.counters.flat(), **self._fleet.flat()} if self._shared else {}

    async def start(self) -> None:
        """Read the tokenizer and greet all servers; one that works is enough."""
        if self._shared is not None:
            return
        if not self._options.server_urls:
            raise EngineNotReady("VLLM_URLS names no server: set it to where 'vllm serve' runs")
        missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
        if missing:
            raise EngineNotReady(f"the package '{missing[0]}' is not installed: install the extra 'vllm-http'")
        from qwen3_asr_server.engines._vllm_http_vocabulary import load_vocabulary

        vocabulary = await asyncio.to_thread(load_vocabulary, self._options.model_path)
        self._open(vocabulary)
        try:
            async with asyncio.TaskGroup() as greetings:
                for server in self._fleet.servers:
                    greetings.create_task(self._greet(server))
            if not self._fleet.up:
                raise EngineNotReady(f"no vLLM server can be used: {self._fleet.why_none()}")
        except BaseException:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._watch_all(), name="watch the vLLM servers")
        _log.info("vLLM servers", extra={"servers": len(self._fleet.servers), "up": self._fleet.up})

    async def stop(self) -> None:
        """Close all connections; open streams fail. The servers run on."""
        watch, self._watch = self._watch, None
        shared, self._shared, self._tools = self._shared, None, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})
        if shared is not None:
            await shared.client.close()
        self._fleet = Fleet(self._options.server_urls)

    def open_stream(self, options: StreamOptions) -> RemoteStream:
        """Begin a piece; it gets its server with its first step.

        Args:
            options: control tokens in the context are taken out.

        Raises:
            EngineNotReady: not started, or stopped.
            InvalidValue: a language that the weights cannot be told to expect.
        """
        if self._shared is None:
            raise EngineNotReady("the engine is not running")
        require_language(options.language, self._info.languages)
        return self._stream(options)

    def _open(self, vocabulary: "Vocabulary") -> None:
        from qwen3_asr_server.engines._vllm_http_client import Client
        from qwen3_asr_server.engines._vllm_http_core import RemoteCore, RemoteCounters, Shared
        from qwen3_asr_server.engines._vllm_http_wire import NUMBERS, Wire

        options = self._options
        prompt = PromptIds.from_encode(vocabulary.encode)
        self._shared = Shared(
            client=Client(options.server_key, options.connect_timeout_s),
            fleet=self._fleet,
            wire=Wire(prompt.audio_pad, NUMBERS.get(options.dtype, vocabulary.numbers)),
            ends=vocabulary.ends,
            counters=RemoteCounters(),
            decode_timeout_s=options.decode_timeout_s,
            queue_timeout_s=options.queue_timeout_s,
        )
        self._tools = Tools(
            core=RemoteCore(self._shared),
            prompt=prompt,
            decode=vocabulary.decode,
            context_ids=context_encoder(vocabulary.encode),
            mel=LogMel(MIN_SAMPLES),
            languages=self._info.languages,
            max_new_tokens=options.max_new_tokens,
            new_nonce=lambda: secrets.token_hex(12),
            verify=self._verify,
        )

    def _stream(self, options: StreamOptions, only: Server | None = None) -> RemoteStream:
        from qwen3_asr_server.engines._vllm_http_core import RemoteCore

        assert self._shared is not None
        assert self._tools is not None
        return RemoteStream(RemoteCore(self._shared, only, options.session), self._tools, options)

    # Servers

    async def _watch_all(self) -> None:
        async with asyncio.TaskGroup() as watches:
            for server in self._fleet.servers:
                watches.create_task(self._watch_one(server))

    async def _watch_one(self, server: Server) -> None:
        """Notice that a server is lost although nobody asks it, and that it is back."""
        while True:
            await asyncio.sleep(LOOK_S if server.up else server.retry_s)
            try:
                if not server.up:
                    await self._greet(server)
                elif not await self._is_well(server) and server.lost("does not say that it is well"):
                    _log.warning("vLLM server lost", extra=_told(server))
            except Exception:  # noqa: BLE001 - the watch must go on: without it a lost server stays lost
                _log.exception("a look at a vLLM server failed")

    async def _is_well(self, server: Server) -> bool:
        return self._shared is not None and await self._shared.client.is_well(server.url)

    async def _greet(self, server: Server) -> None:
        """Take a server into use if it makes text of a known clip; else note why not."""
        known = server.reason
        try:
            async with asyncio.timeout(GREETING_S):
                if not await self._is_well(server):
                    raise EngineNotReady("does not answer")
                require_text(await transcribe_clip(self._stream(StreamOptions(), only=server)))
        except TimeoutError:
            server.failed(f"did not transcribe a known clip within {GREETING_S:.0f} s")
        except EngineError as problem:
            server.failed(problem.message)
        else:
            server.well()
        if server.reason != known:
            _log.info("vLLM server", extra=_told(server))


def auto_reason(options: EngineOptions) -> str | None:
    """Say whether it can run: there are servers. `ENGINE=auto` does not ask, as whoever has servers says so."""
    return "VLLM_URLS names servers" if options.server_urls else None


def _told(server: Server) -> dict[str, object]:
    return {"server": server.number, "url": server.url, "up": server.up, "reason": server.reason}


ENGINE = VllmHttpEngine
