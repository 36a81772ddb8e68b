"""An engine as others build it, in this server: a blocking `LLM.generate` behind a lock.

Each step decodes the whole utterance again, one step of one session at a time; nothing is decoded before the endpoint
is certain. It still profits from this server's scheduler, which asks for no more partials than it answers. Only for
`streaming.py`, which starts this file as a program.
"""

import asyncio
import socket
import threading
from typing import Any

from _tiny_speech import CHECKPOINT

from qwen3_asr_server.config import Settings
from qwen3_asr_server.domain import EngineInfo, Hypothesis, Samples, StepKind, StreamOptions
from qwen3_asr_server.frontends._app import create_server
from qwen3_asr_server.frontends._server import tune_process
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.text.prompt import PromptIds, parse_output

MAX_TOKENS = 256


class LockedEngine:
    """One `LLM` for everybody."""

    info = EngineInfo(
        name="locked",
        model="tiny",
        description="One blocking decode at a time; for benchmarks.",
        languages=frozenset({"en", "zh"}),
        default_language="en",
        production=False,
    )

    def __init__(self) -> None:
        self._llm: Any = None
        self._lock = threading.Lock()

    async def start(self) -> None:
        """Load the weights."""
        from vllm import LLM

        self._llm = await asyncio.to_thread(
            LLM, str(CHECKPOINT), dtype="float32", enforce_eager=True, max_model_len=5120, block_size=32
        )
        tokenizer = self._llm.get_tokenizer()
        self._prompt = PromptIds.from_encode(lambda text: list(tokenizer.encode(text, add_special_tokens=False)))

    async def stop(self) -> None:
        """Nothing to give back: the process ends."""

    def open_stream(self, options: StreamOptions) -> "LockedStream":
        """Begin a piece."""
        return LockedStream(self)

    def decode(self, audio: Samples) -> str:
        """Decode one utterance; blocks until everybody before has been served."""
        from vllm import SamplingParams

        prompt = {
            "prompt_token_ids": self._prompt.prompt_ids((), (1,), None, ()),
            "multi_modal_data": {"audio": [audio]},
        }
        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, skip_special_tokens=False)
        with self._lock:
            (output,) = self._llm.generate([prompt], params, use_tqdm=False)
        return str(output.outputs[0].text)


class LockedStream:
    """One piece."""

    def __init__(self, engine: LockedEngine) -> None:
        self._engine = engine

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        """Decode all of it, but nothing on suspicion."""
        if kind is StepKind.CANDIDATE:
            return None
        parsed = parse_output(await asyncio.to_thread(self._engine.decode, audio), None)
        return Hypothesis(parsed.text.replace("<|im_end|>", ""), parsed.language_code, final=kind is StepKind.FINAL)

    async def close(self) -> None:
        """Nothing to give back."""


def main() -> None:
    settings = Settings(_env_file=None)
    server = create_server(settings, Services(settings, engine=LockedEngine()))
    tune_process()
    listener = socket.create_server((settings.server_host, settings.server_port), backlog=1024)
    with listener, asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()
