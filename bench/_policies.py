"""Other ways to decode on the same engine core, to hold ours against.

`ReferenceStream` does what the streaming of the package qwen-asr does: all audio so far as one item, encoded anew in
each step, with the last answer minus five tokens as prefix. `ScriptedCore` lets vLLM do the whole work of each request
but answers with a text of natural length, because random weights write nothing that could be gone on from. Used by
`step_cost.py`; knows vLLM as `Core`.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from qwen3_asr_server.domain import SAMPLE_RATE, Samples, StepKind
from qwen3_asr_server.engines._vllm_request import Answer, Core, Counters, Ending, Request, TokenIds, Verdict, Window
from qwen3_asr_server.engines._vllm_stream import Tools

UNFIXED_CHUNKS = 2
"""Steps at the start without a prefix."""
UNFIXED_TOKENS = 5
"""Tokens of the last answer that are written anew."""
NEW_TOKENS = 32
"""Most new tokens in a step."""

_names = itertools.count()


@dataclass(slots=True)
class ReferenceStream:
    """One stream by the reference's policy."""

    tools: Tools
    """With a core that takes raw audio."""
    encode: Callable[[str], list[int]]
    raw: str = ""
    steps: int = 0

    async def step(self, audio: Samples) -> str:
        """Decode all audio so far: float32 [n], 16 kHz."""
        prompt = self.tools.prompt
        prefix = self.prefix()
        before = tuple(prompt.opening(()))
        after = tuple(prompt.prompt_ids((), (), None, prefix)[len(before) :])
        whole = Window(f"reference {next(_names)}", np.empty((128, 0), np.float32), audio, 0)
        request = Request(before, [whole], after, NEW_TOKENS, StepKind.PARTIAL, time.time())
        answer = await self.tools.core.generate(request)
        self.raw = self.tools.decode(prefix + answer.ids)
        self.steps += 1
        return self.raw

    def prefix(self) -> TokenIds:
        """Return the last answer, encoded again, without its last tokens; a cut character goes whole."""
        if self.steps < UNFIXED_CHUNKS:
            return ()
        ids = self.encode(self.raw)
        given_up = UNFIXED_TOKENS
        while (kept := ids[: max(0, len(ids) - given_up)]) and "\ufffd" in self.tools.decode(kept):
            given_up += 1
        return tuple(kept)


@dataclass(slots=True)
class ScriptedCore:
    """A core that answers from a script.

    Args:
        core: does the work.
        header: ids that every answer begins with.
        script: ids of a text that is long enough.
        tokens_per_s: how much of it is said in a second of audio.
        no_prefix: length of `Request.after` when nothing of the answer is given.
    """

    core: Core
    header: TokenIds
    script: TokenIds
    tokens_per_s: float
    no_prefix: int
    counters: Counters = field(default_factory=Counters)

    @property
    def can_verify(self) -> bool:
        """Whether `verify` works."""
        return self.core.can_verify

    async def generate(self, request: Request) -> Answer:
        """Have as many tokens written as the script has left, and return those of the script."""
        given = len(request.after) - self.no_prefix
        rest = self.text(request)[given:]
        answer = await self.core.generate(replace(request, max_tokens=max(1, min(len(rest), request.max_tokens))))
        return replace(answer, ids=rest, ending=Ending.STOP)

    async def verify(self, request: Request, draft: TokenIds) -> Verdict:
        """Have the draft compared, and find that it is right and complete."""
        await self.core.verify(replace(request, max_tokens=1), draft)
        return Verdict(len(draft), None, None)

    def text(self, request: Request) -> TokenIds:
        """Return the whole answer for the audio of a request."""
        seconds = sum(len(window.samples) for window in request.windows) / SAMPLE_RATE
        return self.header + self.script[: math.ceil(self.tokens_per_s * seconds)]
