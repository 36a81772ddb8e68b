"""One piece on vLLM: windows of audio out, hypotheses back.

A partial goes on from the older part of the last answer. A candidate or final is what a greedy decode from nothing
gives: the last answer is a draft that the engine core compares with its own choices, and only what follows the first
difference is written anew. Closed windows keep their key, so that encoder and prefix caches have them; the last
window's key is new in every step, because what is cached cannot be compared. State changes only when an answer has
come, so a step that was cancelled leaves none.

Knows the engine core as `Core`, not vLLM. Opened by `vllm.py`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from qwen3_asr_server.audio.mel import HOP_SAMPLES, WINDOW_FRAMES, IncrementalMel, LogMel
from qwen3_asr_server.domain import SAMPLE_RATE, Hypothesis, Samples, StepKind
from qwen3_asr_server.engines._qwen3_answer import audible_samples, mended
from qwen3_asr_server.engines._vllm_request import Core, Ending, Request, TokenIds, Window
from qwen3_asr_server.errors import EngineError
from qwen3_asr_server.text.guard import Suspicion, judge
from qwen3_asr_server.text.prompt import PromptIds, parse_output
from qwen3_asr_server.text.rollback import Rollback, max_tokens

CATCH_UP_S: Final = 4.0
"""New audio above which `max_new_tokens` would cut what was said in it."""
MAX_PARTS: Final = 4
"""Decodes that one final may take, each going on where the last one reached its bound."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What all streams of an engine share."""

    core: Core
    prompt: PromptIds
    decode: Callable[[Sequence[int]], str]
    context_ids: Callable[[str], TokenIds]
    mel: LogMel
    languages: frozenset[str]
    max_new_tokens: int
    new_nonce: Callable[[], str]
    """Gives a name that nobody can guess: a key names audio, and who knows one gets that audio."""
    verify: bool = True
    """Finals by comparing drafts; without it they are decoded from nothing."""


@dataclass(frozen=True, slots=True)
class _Written:
    """A whole answer: what was given of it and what the model wrote."""

    ids: TokenIds
    ending: Ending


class VllmStream:
    """The decoding of one piece, see `EngineStream`.

    Attributes:
        answer: ids of the last answer, which is the next final's draft.
    """

    def __init__(self, tools: Tools, language: str | None, context: str) -> None:
        self._tools = tools
        self._language = language
        self._context = context
        self._rollback = Rollback(tools.prompt.asr_text, tools.decode, forced=language is not None)
        self.answer: TokenIds = ()
        self._heard_s = 0.0
        self._steps = 0
        self._shown = Hypothesis("")
        self._final: Hypothesis | None = None
        self._begin_audio()

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        """Decode the piece so far, see `EngineStream.step`."""
        if not len(audio):
            return Hypothesis("", self._language, final=kind is not StepKind.PARTIAL)
        same = len(audio) == len(self._audio) and self._extends(audio)
        if same and self._final is not None:
            return self._final
        self._take(audio)
        self._steps += 1
        asked_at = time.time()
        if kind is StepKind.PARTIAL:
            return await self._partial(asked_at)
        self._final = await self._complete(kind, asked_at)
        return self._final

    async def close(self) -> None:
        """Forget the audio. A step that still runs is cancelled by whoever waits for it."""
        self._begin_audio()

    @property
    def lifted_windows(self) -> list[int]:
        """Closed windows that finals ask for anew, because something louder followed."""
        return self._mel.lifted()

    # Steps

    async def _partial(self, asked_at: float) -> Hypothesis:
        prefix = self._rollback.prefix()
        self._tools.core.counters.stalled += self._rollback.stalled
        new_s = self._seconds - (self._heard_s if prefix else 0.0)
        bound = max_tokens(
            StepKind.PARTIAL,
            new_s,
            self._rollback.given_up(),
            self._tools.max_new_tokens,
            catch_up=new_s > CATCH_UP_S,
        )
        answer = await self._tools.core.generate(self._request(StepKind.PARTIAL, asked_at, prefix, bound))
        written = _Written(prefix + answer.ids, answer.ending)
        if self._suspect(written) is not None:
            # What is shown stays, and the next step writes from nothing.
            self._rollback.restart()
            self.answer = ()
            return self._shown
        self._take_answer(written.ids)
        self._shown = self._hypothesis(written.ids)
        return self._shown

    async def _complete(self, kind: StepKind, asked_at: float) -> Hypothesis:
        """Return what a greedy decode from nothing gives, if that is fit to be sent."""
        written = await self._greedy(kind, asked_at, self.answer)
        suspicion = self._suspect(written)
        if suspicion is not None and self._context:
            self._tools.core.counters.redecoded += 1
            self._context = ""  # for the rest of this piece
            written = await self._greedy(kind, asked_at, ())
            suspicion = self._suspect(written)
        self._take_answer(written.ids)
        return mended(replace(self._hypothesis(written.ids), final=True), suspicion)

    async def _greedy(self, kind: StepKind, asked_at: float, draft: TokenIds) -> "_Written":
        """Decode from nothing, with as few serial steps as the draft allows."""
        core = self._tools.core
        bound = max_tokens(kind, self._seconds, 0, self._tools.max_new_tokens)
        ids: TokenIds = ()
        if draft and self._tools.verify and core.can_verify:
            verdict = await core.verify(self._request(kind, asked_at, (), bound), draft)
            ids = draft[: verdict.agreed]
            if verdict.continuation is not None:
                ids += verdict.continuation.ids
                if verdict.continuation.ending is not Ending.LENGTH:
                    return _Written(ids, verdict.continuation.ending)
            elif verdict.correction is None:
                return _Written(ids, Ending.STOP)
            else:
                ids += (verdict.correction,)
        for _ in range(MAX_PARTS):
            answer = await core.generate(self._request(kind, asked_at, ids, bound))
            ids += answer.ids
            if answer.ending is not Ending.LENGTH:
                return _Written(ids, answer.ending)
        raise EngineError("The recogniser found no end to this utterance.")

    def _suspect(self, written: "_Written") -> Suspicion | None:
        """Judge an answer, and count what is found."""
        body = parse_output(self._tools.decode(written.ids), self._language).body
        found = judge(body, written.ids, self._context, self._audible / SAMPLE_RATE)
        if written.ending is Ending.LOOP:
            found = Suspicion.LOOP
        if found is not None:
            self._tools.core.counters.suspicions[found] += 1
        return found

    # Audio

    @property
    def _seconds(self) -> float:
        return len(self._audio) / SAMPLE_RATE

    def _begin_audio(self) -> None:
        self._mel = IncrementalMel(self._tools.mel)
        self._nonce = self._tools.new_nonce()
        self._delivered: set[str] = set()
        self._audio: Samples = np.empty(0, np.float32)
        self._audible = 0

    def _extends(self, audio: Samples) -> bool:
        """Return whether this is the audio heard so far, longer or shorter: a cut may also silence its end."""
        common = min(len(audio), len(self._audio))
        return bool(np.array_equal(audio[:common], self._audio[:common]))

    def _take(self, audio: Samples) -> None:
        if not self._extends(audio):
            self._begin_audio()
        new = audio[len(self._audio) :] if len(audio) >= len(self._audio) else audio
        self._audible = audible_samples(new) + (self._audible if new is not audio else 0)
        self._audio = audio
        self._final = None
        self._mel.feed(audio)

    def _windows(self, kind: StepKind) -> list[Window]:
        found = self._mel.windows() if kind is StepKind.PARTIAL else self._mel.exact_windows()
        windows = []
        for window in found:
            last = window is found[-1]
            name = f"step{self._steps}" if last else repr(window.floor)
            begin = window.index * WINDOW_FRAMES * HOP_SAMPLES
            samples = self._audio[begin : begin + window.frames * HOP_SAMPLES]
            windows.append(Window(f"{self._nonce}/{window.index}/{name}", window.mel, samples, window.tokens))
        return windows

    # Text

    def _request(self, kind: StepKind, asked_at: float, prefix: TokenIds, bound: int) -> Request:
        tools = self._tools
        context = tools.context_ids(self._context)
        header = tools.prompt.language_headers[self._language] if self._language else None
        before = tuple(tools.prompt.opening(context))
        after = tuple(tools.prompt.prompt_ids(context, (), header, prefix)[len(before) :])
        return Request(before, self._windows(kind), after, bound, kind, asked_at, self._delivered)

    def _take_answer(self, ids: TokenIds) -> None:
        self.answer = ids
        self._heard_s = self._seconds
        self._rollback.heard(ids, len(self._audio), self._audible)

    def _hypothesis(self, ids: TokenIds) -> Hypothesis:
        parsed = parse_output(self._tools.decode(ids), self._language)
        code = parsed.language_code
        return Hypothesis(parsed.text, code if code in self._tools.languages else None)
