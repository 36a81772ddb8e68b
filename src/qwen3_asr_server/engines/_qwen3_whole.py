"""One piece on an engine that keeps no state: every step decodes all of its audio from nothing.

So a final is what a greedy decode gives, and a partial is its beginning; a step costs the more the longer the
piece is, up to the 28 s of the longest. What is suspicious is decoded once more without context, as on vLLM. Knows
a queue of decodes, no model. Opened by `transformers.py` and `qwen_asr.py`.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from qwen3_asr_server.domain import SAMPLE_RATE, Hypothesis, Samples, StepKind
from qwen3_asr_server.engines._qwen3_answer import audible_samples, mended
from qwen3_asr_server.engines._qwen3_queue import Decode, Written
from qwen3_asr_server.errors import EngineError
from qwen3_asr_server.text.guard import Suspicion, find_loop, judge
from qwen3_asr_server.text.prompt import parse_output
from qwen3_asr_server.text.rollback import max_tokens

CATCH_UP_S: Final = 4.0
"""Audio above which `max_new_tokens` would cut what was said in it."""
MAX_PARTS: Final = 4
"""Decodes that one final may take, each going on where the last one reached its bound."""


@dataclass(slots=True)
class WholeCounters:
    """What the streams of an engine have done since it started."""

    steps: int = 0
    new_tokens: int = 0
    cut: int = 0
    """Decodes that reached their bound."""
    redecoded: int = 0
    """Finals decoded once more without context."""
    suspicions: Counter[Suspicion] = field(default_factory=Counter)
    """Answers that were not fit to be sent."""

    def flat(self) -> dict[str, int]:
        """Return all of them by name."""
        counted = {f"suspicion_{found.value}": self.suspicions[found] for found in Suspicion}
        return {
            "steps": self.steps,
            "new_tokens": self.new_tokens,
            "cut": self.cut,
            "redecoded": self.redecoded,
        } | counted


@dataclass(frozen=True, slots=True)
class WholeTools:
    """What all streams of an engine share."""

    decode: Callable[[Decode], Awaitable[Written | None]]
    """See `StepQueue.decode`."""
    read: Callable[[Sequence[int]], str]
    """Token ids to text, control tokens included."""
    languages: frozenset[str]
    max_new_tokens: int
    counters: WholeCounters


class WholeStream:
    """The decoding of one piece, see `EngineStream`.

    Attributes:
        answer: ids of the last answer.
    """

    def __init__(self, tools: WholeTools, language: str | None, context: str) -> None:
        self._tools = tools
        self._language = language
        self._context = context
        self._audio: Samples = np.empty(0, np.float32)
        self._shown = Hypothesis("")
        self._final: Hypothesis | None = None
        self.answer: tuple[int, ...] = ()

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        """Decode the piece so far, see `EngineStream.step`."""
        if not len(audio):
            return Hypothesis("", self._language, final=kind is not StepKind.PARTIAL)
        if self._final is not None and np.array_equal(audio, self._audio):
            return self._final
        self._audio, self._final = audio, None
        self._tools.counters.steps += 1
        if kind is StepKind.PARTIAL:
            return await self._partial()
        self._final = await self._complete(kind)
        return self._final

    async def close(self) -> None:
        """Forget the audio. A step that still runs is cancelled by whoever waits for it."""
        self._audio, self._final = np.empty(0, np.float32), None

    async def _partial(self) -> Hypothesis | None:
        ids = await self._greedy(StepKind.PARTIAL, parts=1)
        if ids is None:
            return None
        if self._suspect(ids) is None:
            self.answer, self._shown = ids, self._hypothesis(ids)
        return self._shown

    async def _complete(self, kind: StepKind) -> Hypothesis | None:
        """Return what a greedy decode from nothing gives, if that is fit to be sent."""
        ids = await self._greedy(kind, MAX_PARTS)
        suspicion = None if ids is None else self._suspect(ids)
        if suspicion is not None and self._context:
            self._tools.counters.redecoded += 1
            self._context = ""  # for the rest of this piece
            ids = await self._greedy(kind, MAX_PARTS)
            suspicion = None if ids is None else self._suspect(ids)
        if ids is None:
            return None
        self.answer = ids
        return mended(replace(self._hypothesis(ids), final=True), suspicion)

    async def _greedy(self, kind: StepKind, parts: int) -> tuple[int, ...] | None:
        """Decode from nothing, in so many parts at the most; a partial may end in the middle."""
        tools = self._tools
        ids: tuple[int, ...] = ()
        seconds = len(self._audio) / SAMPLE_RATE
        bound = max_tokens(kind, seconds, 0, tools.max_new_tokens, catch_up=seconds > CATCH_UP_S)
        for _ in range(parts):
            written = await tools.decode(Decode(kind, self._audio, self._language, self._context, ids, bound))
            if written is None:
                return None
            ids += written.ids
            tools.counters.new_tokens += len(written.ids)
            tools.counters.cut += not written.complete
            if written.complete or kind is StepKind.PARTIAL or find_loop(ids):
                return ids
        raise EngineError("The recogniser found no end to this utterance.")

    def _suspect(self, ids: tuple[int, ...]) -> Suspicion | None:
        """Judge an answer, and count what is found."""
        body = parse_output(self._tools.read(ids), self._language).body
        found = judge(body, ids, self._context, audible_samples(self._audio) / SAMPLE_RATE)
        if found is not None:
            self._tools.counters.suspicions[found] += 1
        return found

    def _hypothesis(self, ids: tuple[int, ...]) -> Hypothesis:
        parsed = parse_output(self._tools.read(ids), self._language)
        code = parsed.language_code
        return Hypothesis(parsed.text, code if code in self._tools.languages else None)
