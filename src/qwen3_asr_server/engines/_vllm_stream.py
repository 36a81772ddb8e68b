"""One piece on vLLM: windows of audio out, hypotheses back.

A partial goes on from the older part of the last answer. A candidate or final is what a greedy decode from nothing
gives: the last answer is a draft that the engine core compares with its own choices, and only what follows the first
difference is written anew. Closed windows keep their key, so that encoder and prefix caches have them; the last
window's key is new in every step, because what is cached cannot be compared. State changes only when an answer has
come, so a step that was cancelled leaves none.

Knows the engine core as `Core`, not vLLM. Opened by `vllm.py`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np

from qwen3_asr_server.audio.mel import HOP_SAMPLES, WINDOW_FRAMES, IncrementalMel, LogMel, audio_tokens
from qwen3_asr_server.domain import SAMPLE_RATE, Hypothesis, Samples, StepKind
from qwen3_asr_server.engines._qwen3_answer import audible_samples, mended, said_once
from qwen3_asr_server.engines._vllm_request import Core, Ending, Request, TokenIds, Window
from qwen3_asr_server.engines._vllm_room import KvRoom
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineTimeout
from qwen3_asr_server.text.guard import Suspicion, find_loop, judge
from qwen3_asr_server.text.languages import INERTIA
from qwen3_asr_server.text.prompt import PromptIds, parse_output
from qwen3_asr_server.text.rollback import Rollback, max_tokens

CATCH_UP_S: Final = 4.0
"""New audio above which `max_new_tokens` would cut what was said in it."""
SPARE_TOKENS: Final = 64
"""Charged for the turns of the prompt and for text that is still to be written."""
MAX_PARTS: Final = 4
"""Decodes that one final may take, each going on where the last one reached its bound."""

Told = TypeVar("Told")


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
    room: KvRoom = field(default_factory=KvRoom)
    """Of the KV cache, shared by all streams."""
    decode_timeout_s: float | None = None
    """Longest decode, besides half of its audio; None where the core keeps a deadline of its own."""
    now: Callable[[], float] = time.time
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class _Written:
    """A whole answer: what was given of it and what the model wrote."""

    ids: TokenIds
    ending: Ending
    chances: tuple[float, ...] = ()
    """The model's probability of each id; empty where nobody asked for it."""
    endless: bool = False
    """It still had no end after `MAX_PARTS` decodes."""


class VllmStream:
    """The decoding of one piece, see `EngineStream`.

    Attributes:
        answer: ids of the last answer, which is the next final's draft.
    """

    def __init__(
        self,
        tools: Tools,
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
        asked_at = self._tools.now()
        if not await self._tools.room.enter(self, self._needed_tokens(audio), kind, recorded=self._recorded):
            return None
        self._take(audio)
        self._steps += 1
        if kind is StepKind.PARTIAL:
            return await self._partial(asked_at)
        self._final = await self._complete(kind, asked_at)
        return self._final

    async def close(self) -> None:
        """Forget the audio. A step that still runs is cancelled by whoever waits for it."""
        self._tools.room.leave(self)
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
        request = self._request(StepKind.PARTIAL, asked_at, prefix, bound)
        answer = await self._in_time(self._tools.core.generate(request))
        written = _Written(prefix + answer.ids, answer.ending, () if prefix else answer.chances)
        if self._suspect(written) is not None:
            # What is shown stays, and the next step writes from nothing.
            self._rollback.restart()
            self.answer = ()
            return self._shown
        if not prefix:
            written = await self._in_expected_language(written, StepKind.PARTIAL, asked_at)
        self._take_answer(written.ids)
        self._shown = self._hypothesis(written)
        return self._shown

    async def _complete(self, kind: StepKind, asked_at: float) -> Hypothesis:
        """Return what a greedy decode from nothing gives, if that is fit to be sent."""
        draft = self.answer
        written = await self._greedy(kind, asked_at, draft)
        suspicion = self._suspect(written)
        if suspicion is not None and (self._context or draft):
            self._tools.core.counters.redecoded += 1
            self._context = ""  # for the rest of this piece
            written = await self._greedy(kind, asked_at, ())
            suspicion = self._suspect(written)
        if suspicion is None:
            written = await self._in_expected_language(written, kind, asked_at)
        self._take_answer(written.ids)
        return mended(replace(self._hypothesis(self._fit(written, suspicion)), final=True), suspicion)

    async def _greedy(self, kind: StepKind, asked_at: float, draft: TokenIds) -> "_Written":
        """Decode from nothing, with as few serial steps as the draft allows."""
        core = self._tools.core
        bound = max_tokens(kind, self._seconds, 0, self._tools.max_new_tokens)
        if not (draft and self._tools.verify and core.can_verify):
            return await self._go_on(kind, asked_at, _Written((), Ending.LENGTH))
        verdict = await self._in_time(core.verify(self._request(kind, asked_at, (), bound), draft))
        ids, chances = draft[: verdict.agreed], verdict.chances[: verdict.agreed]
        if verdict.continuation is not None:
            more = verdict.continuation
            written = _Written(ids + more.ids, more.ending, chances + more.chances)
        elif verdict.correction is None:
            written = _Written(ids, Ending.STOP, chances)
        else:
            written = _Written((*ids, verdict.correction), Ending.LENGTH, verdict.chances[: verdict.agreed + 1])
        return await self._go_on(kind, asked_at, written)

    async def _go_on(self, kind: StepKind, asked_at: float, written: "_Written") -> "_Written":
        """Write on from where an answer was cut, up to its end or until it goes in circles."""
        bound = max_tokens(kind, self._seconds, 0, self._tools.max_new_tokens)
        for _ in range(MAX_PARTS):
            if written.ending is not Ending.LENGTH:
                return written
            request = self._request(kind, asked_at, written.ids, bound)
            answer = await self._in_time(self._tools.core.generate(request))
            written = _Written(written.ids + answer.ids, answer.ending, written.chances + answer.chances)
            if written.ending is Ending.LENGTH and find_loop(written.ids):
                # The core looks at what one request writes, which short audio bounds to less than a loop takes.
                return replace(written, ending=Ending.LOOP)
        return replace(written, endless=written.ending is Ending.LENGTH)

    async def _in_time(self, decode: Awaitable[Told]) -> Told:
        """Wait for the core, but not for one that lives and answers no more. A request given up is aborted there."""
        limit_s = self._tools.decode_timeout_s
        try:
            async with asyncio.timeout(None if limit_s is None else limit_s + self._seconds / 2):
                return await decode
        except TimeoutError:
            raise EngineTimeout("The recogniser took too long.") from None

    async def _in_expected_language(self, written: "_Written", kind: StepKind, asked_at: float) -> "_Written":
        """Write a short answer anew, in the language of the session, if it is in another one without good reason."""
        tools, expected = self._tools, self._expected
        if expected is None:
            return written
        text = parse_output(tools.decode(written.ids), None)
        if not text.text or not INERTIA.holds(
            expected, text.language_code, self._audible / SAMPLE_RATE, self._language_chance(written)
        ):
            return written
        tools.core.counters.held_languages += 1
        header = tools.prompt.language_headers[expected]
        try:
            again = await self._go_on(kind, asked_at, _Written(header, Ending.LENGTH, (1.0,) * len(header)))
        except EngineCrashed:
            raise
        except EngineError:
            return written
        return again if self._suspect(again) is None else written

    def _language_chance(self, written: "_Written") -> float | None:
        """Return how sure the model was of the language it named; None if nobody knows."""
        known = len(written.chances) == len(written.ids)
        return min(written.chances[: self._header_end(written.ids)], default=None) if known else None

    def _suspect(self, written: "_Written") -> Suspicion | None:
        """Judge an answer, and count what is found."""
        body = parse_output(self._tools.decode(written.ids), self._language).body
        found = judge(body, written.ids, self._context, self._audible / SAMPLE_RATE, hit_limit=written.endless)
        if written.ending is Ending.LOOP:
            found = Suspicion.LOOP
        if found is not None:
            self._tools.core.counters.suspicions[found] += 1
        return found

    def _fit(self, written: "_Written", suspicion: Suspicion | None) -> "_Written":
        """Return what can have been said of an answer that went on and on."""
        if suspicion is Suspicion.LOOP:
            ids, chances = said_once(written.ids, written.chances)
            return _Written(ids, written.ending, chances)
        if not written.endless:
            return written
        end = max_tokens(StepKind.FINAL, self._seconds, 0, self._tools.max_new_tokens)
        return _Written(written.ids[:end], written.ending, written.chances[:end])

    # Audio

    def _needed_tokens(self, audio: Samples) -> int:
        """Return what the KV cache holds of this piece: context, audio, text."""
        audio_part = audio_tokens(self._tools.mel.frames(len(audio)))
        return len(self._tools.context_ids(self._context)) + audio_part + len(self.answer) + SPARE_TOKENS

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
        chances = kind is not StepKind.PARTIAL or (self._expected is not None and not prefix)
        return Request(
            before, self._windows(kind), after, bound, kind, asked_at, self._delivered, chances, self._recorded
        )

    def _take_answer(self, ids: TokenIds) -> None:
        self.answer = ids
        self._heard_s = self._seconds
        self._rollback.heard(ids, len(self._audio), self._audible)

    def _hypothesis(self, written: "_Written") -> Hypothesis:
        parsed = parse_output(self._tools.decode(written.ids), self._language)
        code = parsed.language_code
        end = self._header_end(written.ids)
        chances = written.chances[end:] if parsed.text and len(written.chances) == len(written.ids) else ()
        # Rounded, because the last digits depend on the batch.
        confidence = round(sum(chances) / len(chances), 2) if chances else None
        return Hypothesis(parsed.text, code if code in self._tools.languages else None, confidence=confidence)

    def _header_end(self, ids: TokenIds) -> int:
        """Return how many ids the header has, its end included; 0 without one."""
        return ids.index(self._tools.prompt.asr_text) + 1 if self._tools.prompt.asr_text in ids else 0
