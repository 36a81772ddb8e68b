"""One piece on an engine that keeps no state: every step decodes all of its audio from nothing.

So a final is what a greedy decode gives, and a partial is its beginning; a step costs the more the longer the
piece is, up to the 28 s of the longest. What is suspicious is decoded once more without context, as on vLLM. Knows
a queue of decodes, no model. Opened by `transformers.py` and `qwen_asr.py`.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final

import numpy as np

from qwen3_asr_server.domain import SAMPLE_RATE, Hypothesis, Samples, StepKind
from qwen3_asr_server.engines._qwen3_answer import audible_samples, mended, said_once
from qwen3_asr_server.engines._qwen3_queue import Decode, Written
from qwen3_asr_server.errors import EngineCrashed, EngineError
from qwen3_asr_server.text.guard import Suspicion, find_loop, judge
from qwen3_asr_server.text.languages import INERTIA
from qwen3_asr_server.text.prompt import ASR_TEXT, parse_output
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
    held_languages: int = 0
    """Short answers decoded once more in the language of their session."""
    suspicions: Counter[Suspicion] = field(default_factory=Counter)
    """Answers that were not fit to be sent."""

    def flat(self) -> dict[str, int]:
        """Return all of them by name."""
        numbers = {name: value for name, value in asdict(self).items() if name != "suspicions"}
        return numbers | {f"suspicion_{found.value}": self.suspicions[found] for found in Suspicion}


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


class _NoRoom(Exception):
    """There is no room for a step that may do without."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A whole answer, and the language it was told to be in."""

    language: str | None
    ids: tuple[int, ...] = ()
    chances: tuple[float, ...] = ()
    endless: bool = False
    """It still had no end after `MAX_PARTS` decodes."""


class WholeStream:
    """The decoding of one piece, see `EngineStream`.

    Attributes:
        answer: ids of the last answer.
    """

    def __init__(
        self,
        tools: WholeTools,
        language: str | None,
        context: str,
        expected: str | None = None,
        *,
        recorded: bool = False,
    ) -> None:
        self._tools = tools
        self._recorded = recorded
        self._language = language
        self._context = context
        self._expected = expected if language is None and expected in tools.languages else None
        self._audio: Samples = np.empty(0, np.float32)
        self._audible_s = 0.0
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
        self._audible_s = audible_samples(audio) / SAMPLE_RATE
        self._tools.counters.steps += 1
        try:
            if kind is StepKind.PARTIAL:
                return await self._partial()
            self._final = await self._complete(kind)
        except _NoRoom:
            return None
        return self._final

    async def close(self) -> None:
        """Forget the audio. A step that still runs is cancelled by whoever waits for it."""
        self._audio, self._final = np.empty(0, np.float32), None

    async def _partial(self) -> Hypothesis:
        answer = await self._greedy(StepKind.PARTIAL, self._language)
        if self._suspect(answer) is None:
            answer = await self._in_expected_language(answer, StepKind.PARTIAL)
            self.answer, self._shown = answer.ids, self._hypothesis(answer)
        return self._shown

    async def _complete(self, kind: StepKind) -> Hypothesis:
        """Return what a greedy decode from nothing gives, if that is fit to be sent."""
        answer = await self._greedy(kind, self._language)
        suspicion = self._suspect(answer)
        if suspicion is not None and self._context:
            self._tools.counters.redecoded += 1
            self._context = ""  # for the rest of this piece
            answer = await self._greedy(kind, self._language)
            suspicion = self._suspect(answer)
        if suspicion is None:
            answer = await self._in_expected_language(answer, kind)
        self.answer = answer.ids
        return mended(replace(self._hypothesis(self._fit(answer, suspicion)), final=True), suspicion)

    async def _greedy(self, kind: StepKind, language: str | None) -> _Answer:
        """Decode from nothing, in some parts if need be; a partial may end in the middle."""
        tools, answer, bound = self._tools, _Answer(language), self._bound(kind)
        for _ in range(MAX_PARTS):
            wanted = Decode(kind, self._audio, language, self._context, answer.ids, bound, self._recorded)
            written = await tools.decode(wanted)
            if written is None:
                raise _NoRoom
            answer = _Answer(language, answer.ids + written.ids, answer.chances + written.chances)
            tools.counters.new_tokens += len(written.ids)
            tools.counters.cut += not written.complete
            if written.complete or kind is StepKind.PARTIAL or find_loop(answer.ids):
                return answer
        return replace(answer, endless=True)

    async def _in_expected_language(self, answer: _Answer, kind: StepKind) -> _Answer:
        """Write a short answer anew, in the language of the session, if it is in another one without good reason."""
        if self._expected is None:
            return answer
        parsed = parse_output(self._tools.read(answer.ids), None)
        chance = min(answer.chances[: self._header_length(answer)], default=None)
        if not parsed.text or not INERTIA.holds(self._expected, parsed.language_code, self._audible_s, chance):
            return answer
        self._tools.counters.held_languages += 1
        try:
            again = await self._greedy(kind, self._expected)
        except EngineCrashed:
            raise
        except (EngineError, _NoRoom):
            return answer
        return answer if self._suspect(again) else again

    def _suspect(self, answer: _Answer) -> Suspicion | None:
        """Judge an answer, and count what is found."""
        body = parse_output(self._tools.read(answer.ids), answer.language).body
        found = judge(body, answer.ids, self._context, self._audible_s, hit_limit=answer.endless)
        if found is not None:
            self._tools.counters.suspicions[found] += 1
        return found

    def _fit(self, answer: _Answer, suspicion: Suspicion | None) -> _Answer:
        """Return what can have been said of an answer that went on and on."""
        if suspicion is Suspicion.LOOP:
            ids, chances = said_once(answer.ids, answer.chances)
            return _Answer(answer.language, ids, chances)
        end = self._bound(StepKind.FINAL) if answer.endless else None
        return _Answer(answer.language, answer.ids[:end], answer.chances[:end])

    def _bound(self, kind: StepKind) -> int:
        seconds = len(self._audio) / SAMPLE_RATE
        return max_tokens(kind, seconds, 0, self._tools.max_new_tokens, catch_up=seconds > CATCH_UP_S)

    def _hypothesis(self, answer: _Answer) -> Hypothesis:
        parsed = parse_output(self._tools.read(answer.ids), answer.language)
        code = parsed.language_code
        chances = answer.chances[self._header_length(answer) :]
        # Two digits: the others depend on who shares the batch.
        confidence = round(sum(chances) / len(chances), 2) if parsed.text and chances else None
        return Hypothesis(parsed.text, code if code in self._tools.languages else None, confidence=confidence)

    def _header_length(self, answer: _Answer) -> int:
        """Return how many ids name the language; 0 if none do."""
        if answer.language is not None or ASR_TEXT not in self._tools.read(answer.ids):
            return 0
        return next(n for n in range(1, len(answer.ids) + 1) if ASR_TEXT in self._tools.read(answer.ids[:n]))
