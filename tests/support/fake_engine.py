"""An engine that answers at once and can be told to misbehave, for tests of everything around engines.

Its text is a pure function of the audio: each 320 ms that is louder than silence is a word, named after its
loudness. So finals depend on the audio range alone, and two ranges with different audio rarely share a text.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from qwen3_asr_server.domain import EngineInfo, Hypothesis, Samples, StepKind, StreamOptions, Word
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.errors import EngineError, EngineNotReady, InvalidValue

WORD_SAMPLES = 4 * 1280
SILENCE_RMS = 0.005
SYLLABLES = ("ba", "de", "fi", "go", "lu", "ka", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "za")


def transcribe(audio: Samples) -> Hypothesis:
    """Return what the fake engine hears in a whole piece."""
    words = []
    for start in range(0, len(audio), WORD_SAMPLES):
        block = audio[start : start + WORD_SAMPLES]
        rms = float(np.sqrt(np.mean(np.square(block, dtype=np.float64))))
        if rms >= SILENCE_RMS:
            loudness = int(rms * 4096)
            name = SYLLABLES[loudness // 16 % 16] + SYLLABLES[loudness % 16]
            words.append(Word(name, start, start + len(block), 1.0))
    return Hypothesis(" ".join(word.text for word in words), "en", tuple(words), 1.0 if words else None)


@dataclass
class FakeEngine:
    """Answers at once; fields of the second group make it misbehave and may be set at any time."""

    options: EngineOptions = field(default_factory=EngineOptions)
    word_times: bool = True

    gate: asyncio.Event | None = None
    """Steps wait for it before they answer; None lets them through."""
    failures: deque[EngineError] = field(default_factory=deque)
    """The next steps raise these, one each."""
    start_failure: EngineError | None = None
    partials: bool = True
    """False answers None to every PARTIAL."""

    running: bool = False
    steps: list[tuple[StepKind, int]] = field(default_factory=list)
    """Kind and length in samples of every step, when it began."""
    opened: list[StreamOptions] = field(default_factory=list)
    open_streams: int = 0

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            name="fake",
            model="none",
            description="Names the loudness of what it hears; for tests.",
            languages=frozenset({"en", "zh"}),
            default_language="en",
            production=False,
            word_times=self.word_times,
        )

    async def start(self) -> None:
        if self.start_failure is not None:
            raise self.start_failure
        self.running = True

    async def stop(self) -> None:
        self.running = False

    def open_stream(self, options: StreamOptions) -> "FakeStream":
        if not self.running:
            raise EngineNotReady("the engine is not running")
        if options.language is not None and options.language not in self.info.languages:
            raise InvalidValue("not a language of this engine", param="language")
        self.opened.append(options)
        self.open_streams += 1
        return FakeStream(self, options)


@dataclass
class FakeStream:
    """One piece. Stateless: every step looks at all of the audio."""

    engine: FakeEngine
    options: StreamOptions
    closed: bool = False

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        self.engine.steps.append((kind, len(audio)))
        if self.engine.gate is not None:
            await self.engine.gate.wait()
        if not self.engine.running:
            raise EngineNotReady("the engine is not running")
        if self.engine.failures:
            raise self.engine.failures.popleft()
        if kind is StepKind.PARTIAL and not self.engine.partials:
            return None
        heard = transcribe(audio)
        return Hypothesis(
            heard.text,
            self.options.language or heard.language,
            heard.words if self.engine.word_times else (),
            heard.confidence,
            final=kind is not StepKind.PARTIAL,
        )

    async def close(self) -> None:
        assert not self.closed, "a stream is closed once"
        self.closed = True
        self.engine.open_streams -= 1


class Fatal(EngineError):
    """An error that trying again does not mend."""

    retryable = False


class FailsLater(FakeEngine):
    """Cannot recognise any piece but the first."""

    def open_stream(self, options: StreamOptions) -> FakeStream:
        """Begin a piece, see `FakeEngine`."""
        if self.opened:
            self.failures.append(Fatal("This piece cannot be recognised."))
        return super().open_stream(options)


ENGINE = FakeEngine


class Gated(FakeEngine):
    """Answers no step until `open` is called, from any thread."""

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.gate = asyncio.Event()
        await super().start()

    def open(self) -> None:
        assert self.gate is not None
        self.loop.call_soon_threadsafe(self.gate.set)
