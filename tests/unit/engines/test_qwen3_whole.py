"""A piece on an engine without state, whose decodes answer by script; and the engine around it."""

from collections.abc import Sequence

import numpy as np
import pytest

from qwen3_asr_server.domain import GRID_SAMPLES, Hypothesis, Samples, StepKind, StreamOptions
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._qwen3_checkpoint import describe
from qwen3_asr_server.engines._qwen3_engine import WholeEngine
from qwen3_asr_server.engines._qwen3_queue import Decode, Written
from qwen3_asr_server.engines._qwen3_whole import MAX_PARTS, WholeCounters, WholeStream, WholeTools
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineNotReady, EngineTimeout, InvalidValue
from qwen3_asr_server.text.guard import Suspicion

CONTEXT = "light, door, window, music, red, green, blue, left"
LOOP = "language English<asr_text>" + "go on " * 30
Planned = str | tuple[str, bool] | tuple[str, bool, float] | EngineError | None
"""The text of an answer, whether that is all of it, and the probability of each of its tokens; or what is raised."""


class Script:
    """Answers what it was told to, one text for each decode, and keeps what was wanted."""

    def __init__(self, *planned: Planned) -> None:
        self.wanted: list[Decode] = []
        self.counters = WholeCounters()
        self._planned = iter(planned)

    async def decode(self, wanted: Decode) -> Written | None:
        self.wanted.append(wanted)
        planned = next(self._planned)
        if planned is None:
            return None
        if isinstance(planned, EngineError):
            raise planned
        text, complete, *chance = (planned, True) if isinstance(planned, str) else planned
        return Written(tuple(map(ord, text)), complete, tuple(chance) * len(text))

    def stream(self, language: str | None = None, context: str = "", expected: str | None = None) -> WholeStream:
        tools = WholeTools(self.decode, read, frozenset({"en", "zh"}), 32, self.counters)
        return WholeStream(tools, language, context, expected)

    async def final(self, audio: Samples, language: str | None = None, context: str = "") -> Hypothesis:
        heard = await self.stream(language, context).step(audio, StepKind.FINAL)
        assert heard is not None
        return heard


def read(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def noise(units: int, loudness: float = 0.1) -> Samples:
    return (np.random.default_rng(units).standard_normal(units * GRID_SAMPLES) * loudness).astype(np.float32)


async def test_a_final_is_read_and_parsed() -> None:
    heard = await Script("language Chinese<asr_text>你好").final(noise(20))
    assert heard == Hypothesis("你好", "zh", final=True)


async def test_a_language_that_the_weights_do_not_list_is_not_reported() -> None:
    assert (await Script("language French<asr_text>oui").final(noise(20))).language is None


async def test_a_forced_language_is_asked_for_and_kept() -> None:
    script = Script("hello")
    assert await script.final(noise(20), language="en") == Hypothesis("hello", "en", final=True)
    assert script.wanted[0].language == "en"


async def test_a_final_over_the_same_audio_costs_nothing() -> None:
    script = Script("language English<asr_text>yes")
    stream, audio = script.stream(), noise(20)
    candidate = await stream.step(audio, StepKind.CANDIDATE)
    assert await stream.step(audio.copy(), StepKind.FINAL) == candidate
    assert script.counters.steps == 1
    assert stream.answer == tuple(map(ord, "language English<asr_text>yes"))


async def test_a_final_over_other_audio_is_decoded() -> None:
    script = Script("language English<asr_text>yes", "language English<asr_text>no")
    stream = script.stream()
    await stream.step(noise(20), StepKind.CANDIDATE)
    heard = await stream.step(noise(20)[: 10 * GRID_SAMPLES], StepKind.FINAL)
    assert heard
    assert heard.text == "no"


@pytest.mark.parametrize(
    ("kind", "units", "bound"),
    [
        (StepKind.PARTIAL, 13, 21),
        (StepKind.PARTIAL, 38, 32),
        (StepKind.PARTIAL, 125, 128),
        (StepKind.FINAL, 13, 32),
        (StepKind.FINAL, 350, 344),
    ],
)
async def test_how_much_a_step_may_write(kind: StepKind, units: int, bound: int) -> None:
    """A long partial is a catch-up step: it writes the whole piece, which `MAX_NEW_TOKENS` would cut."""
    script = Script("language English<asr_text>yes")
    await script.stream().step(noise(units), kind)
    assert script.wanted[0].max_tokens == bound


async def test_a_final_goes_on_where_it_was_cut() -> None:
    script = Script(("language English<asr_text>one", False), (" two", False), " three")
    assert (await script.final(noise(20))).text == "one two three"
    assert [len(wanted.prefix) for wanted in script.wanted] == [0, 29, 33]
    assert script.counters.cut == 2


ENDLESS = [("language English<asr_text>one", False), (" two", False), (" three", False), (" four", False)]


async def test_a_final_without_an_end_is_decoded_again_without_context() -> None:
    script = Script(*ENDLESS, "language English<asr_text>yes")
    assert (await script.final(noise(20), context=CONTEXT)).text == "yes"
    assert script.counters.redecoded == 1
    assert script.counters.suspicions == {Suspicion.HIT_LIMIT: 1}


async def test_a_final_without_an_end_is_sent_as_far_as_it_can_have_been_said() -> None:
    """Of 1.6 s that is 32 tokens; the header has 26 here."""
    assert len(ENDLESS) == MAX_PARTS
    assert (await Script(*ENDLESS).final(noise(20))).text == "one tw"


async def test_a_partial_may_end_in_the_middle() -> None:
    heard = await Script(("language English<asr_text>one", False)).stream().step(noise(20), StepKind.PARTIAL)
    assert heard == Hypothesis("one", "en")


@pytest.mark.parametrize("kind", [StepKind.PARTIAL, StepKind.CANDIDATE])
async def test_without_room_there_is_no_answer(kind: StepKind) -> None:
    assert await Script(None).stream().step(noise(20), kind) is None


async def test_a_suspicious_partial_leaves_what_is_shown() -> None:
    script = Script("language English<asr_text>go", LOOP)
    stream = script.stream()
    shown = await stream.step(noise(20), StepKind.PARTIAL)
    assert await stream.step(noise(30), StepKind.PARTIAL) == shown
    assert script.counters.suspicions[Suspicion.LOOP] == 1


async def test_a_recited_context_is_decoded_again_without_it() -> None:
    script = Script(f"language English<asr_text>{CONTEXT}", "language English<asr_text>door")
    assert (await script.final(noise(40), context=CONTEXT)).text == "door"
    assert [wanted.context for wanted in script.wanted] == [CONTEXT, ""]
    assert script.counters.redecoded == 1


async def test_a_loop_is_not_continued_and_stands_once() -> None:
    script = Script((LOOP, False))
    assert (await script.final(noise(100))).text == "go on"
    assert len(script.wanted) == 1


async def test_a_loop_that_is_cut_in_a_word_stands_once() -> None:
    script = Script(("language English<asr_text>well " + "turn on " * 16 + "tur", False, 0.5))
    assert await script.final(noise(100)) == Hypothesis("well turn on", "en", confidence=0.5, final=True)


async def test_text_on_silence_is_not_sent() -> None:
    assert (await Script("language English<asr_text>thank you").final(noise(20, loudness=1e-5))).text == ""


@pytest.mark.parametrize(
    ("units", "chance", "held"), [(6, 0.5, True), (6, 0.95, False), (20, 0.5, False)], ids=["short", "sure", "long"]
)
@pytest.mark.parametrize("kind", list(StepKind))
async def test_short_speech_does_not_change_the_sessions_language(
    kind: StepKind, units: int, chance: float, held: bool
) -> None:
    script = Script(("language Chinese<asr_text>是", True, chance), "she")
    heard = await script.stream(expected="en").step(noise(units), kind)
    assert heard
    assert (heard.text, heard.language) == (("she", "en") if held else ("是", "zh"))
    assert [wanted.language for wanted in script.wanted] == [None, "en"][: 1 + held]
    assert script.counters.held_languages == held


@pytest.mark.parametrize("failure", [EngineError("no"), EngineTimeout("late"), None], ids=["error", "late", "no room"])
@pytest.mark.parametrize("kind", list(StepKind))
async def test_an_answer_outlives_the_decode_that_should_have_changed_its_language(
    failure: EngineError | None, kind: StepKind
) -> None:
    heard = (
        await Script(("language Chinese<asr_text>是", True, 0.5), failure).stream(expected="en").step(noise(6), kind)
    )
    assert heard
    assert (heard.text, heard.language) == ("是", "zh")


async def test_the_end_of_the_model_is_told_though_there_is_an_answer() -> None:
    script = Script(("language Chinese<asr_text>是", True, 0.5), EngineCrashed("gone"))
    with pytest.raises(EngineCrashed):
        await script.stream(expected="en").step(noise(6), StepKind.FINAL)


async def test_confidence_is_that_of_the_text() -> None:
    heard = await Script(("language English<asr_text>o", False, 0.2), ("ne", True, 0.5)).final(noise(20))
    assert heard.confidence == 0.4
    assert (await Script(("language None<asr_text>", True, 0.9)).final(noise(20))).confidence is None


async def test_no_audio_needs_no_model() -> None:
    script = Script()
    assert await script.final(noise(0)) == Hypothesis("", None, final=True)
    assert not script.wanted


class ModelStub:
    device, dtype = "cpu", "float32"

    def __init__(self, text: str) -> None:
        self.text = text
        self.closed = False

    def read(self, ids: Sequence[int]) -> str:
        return read(ids)

    def decode(self, batch: Sequence[Decode]) -> list[Written]:
        return [Written(tuple(map(ord, self.text)), complete=True) for _ in batch]

    def close(self) -> None:
        self.closed = True


def engine_with(model: ModelStub) -> WholeEngine:
    info = describe("stub", "a stub", "nowhere", "nothing at all")
    return WholeEngine(info, EngineOptions(), lambda _: model, max_batch=2)


async def test_the_engine_counts_and_gives_its_model_back() -> None:
    model = ModelStub("language English<asr_text>yes")
    engine = engine_with(model)
    assert engine.stats() == {}
    await engine.start()
    await engine.open_stream(StreamOptions()).step(noise(20), StepKind.FINAL)
    assert (engine.stats()["steps"], engine.stats()["batches"]) == (2, 2)
    with pytest.raises(InvalidValue):
        engine.open_stream(StreamOptions(language="tlh"))
    await engine.stop()
    assert model.closed
    assert engine.stats() == {}


@pytest.mark.parametrize("text", ["", "!!!!!!!!", "language None<asr_text>"])
async def test_weights_that_do_not_transcribe_are_refused(text: str) -> None:
    model = ModelStub(text)
    engine = engine_with(model)
    with pytest.raises(EngineNotReady, match="MODEL_DTYPE"):
        await engine.start()
    assert model.closed
    with pytest.raises(EngineNotReady):
        engine.open_stream(StreamOptions())
