"""A piece on an engine core that answers by script: what it asks for, and what it makes of bad answers.

The real core is in `tests/vllm`; here is what a well-trained model will not do when asked.
"""

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from qwen3_asr_server.audio.mel import LogMel
from qwen3_asr_server.domain import GRID_SAMPLES, Hypothesis, Samples, StepKind
from qwen3_asr_server.engines._vllm_request import Answer, Counters, Ending, Request, TokenIds, Verdict
from qwen3_asr_server.engines._vllm_room import KvRoom
from qwen3_asr_server.engines._vllm_stream import Tools, VllmStream
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineTimeout
from qwen3_asr_server.text.guard import Suspicion, find_loop
from qwen3_asr_server.text.prompt import PromptIds
from support.character_tokens import decode, encode

CONTEXT = "light, door, window, music, red, green, blue, left"
Script = Sequence[tuple[str, Ending] | tuple[str, Ending, float] | str | EngineError]
"""Text, why it ended, and the probability of each of its tokens; or what the core raises."""


class ScriptedCore:
    """Answers what it was told to, one text for each decode, and keeps the requests."""

    can_verify = True

    def __init__(self, script: Script, verdicts: Sequence[Verdict] = ()) -> None:
        self.counters = Counters()
        self.requests: list[Request] = []
        self.drafts: list[str] = []
        self.now = lambda: 0.0
        self._script = iter(script)
        self._verdicts = iter(verdicts)

    async def generate(self, request: Request) -> Answer:
        self.requests.append(request)
        planned = next(self._script)
        if isinstance(planned, EngineError):
            raise planned
        text, ending, *chance = (planned, Ending.STOP) if isinstance(planned, str) else planned
        ids = tuple(encode(text))
        return Answer(ids, ending, 0, 0, tuple(chance) * len(ids) if request.chances else ())

    async def verify(self, request: Request, draft: TokenIds) -> Verdict:
        self.requests.append(request)
        self.drafts.append(decode(draft))
        return next(self._verdicts)


def stream(
    core: ScriptedCore,
    language: str | None = None,
    context: str = "",
    expected: str | None = None,
    room: KvRoom | None = None,
    decode_timeout_s: float | None = None,
) -> VllmStream:
    names = map(str, itertools.count())
    tools = Tools(
        core=core,
        prompt=PromptIds.from_encode(encode),
        decode=decode,
        context_ids=lambda text: tuple(encode(text)),
        mel=LogMel(7 * GRID_SAMPLES),
        languages=frozenset({"en", "zh"}),
        max_new_tokens=32,
        new_nonce=lambda: next(names),
        room=room or KvRoom(),
        decode_timeout_s=decode_timeout_s,
        now=core.now,
    )
    return VllmStream(tools, language, context, expected)


def noise(units: int, loudness: float = 0.1, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(units * GRID_SAMPLES) * loudness).astype(np.float32)


async def final(core: ScriptedCore, audio: Samples, **options: str) -> Hypothesis:
    heard = await stream(core, **options).step(audio, StepKind.FINAL)
    assert heard is not None
    return heard


async def test_a_draft_that_agrees_is_the_final() -> None:
    core = ScriptedCore(
        ["language English<asr_text>yes"], [Verdict(20, None, Answer(tuple(encode(" no")), Ending.STOP, 0, 0))]
    )
    piece = stream(core)
    await piece.step(noise(10), StepKind.PARTIAL)
    heard = await piece.step(noise(12), StepKind.CANDIDATE)
    assert core.drafts == ["language English<asr_text>yes"]
    assert heard == Hypothesis("yes no", "en", final=True)


@pytest.mark.parametrize(
    ("verdict", "then", "text"),
    [
        (Verdict(19, ord("n"), None), ["o"], "yeno"),
        (Verdict(19, None, None), [], "ye"),
        (Verdict(20, None, Answer(tuple(encode(" an")), Ending.LENGTH, 0, 0)), ["d no"], "yes and no"),
    ],
    ids=["corrected", "ends sooner", "goes on past its bound"],
)
async def test_what_follows_a_verdict(verdict: Verdict, then: Script, text: str) -> None:
    core = ScriptedCore(["language English<asr_text>yes", *then], [verdict])
    piece = stream(core)
    await piece.step(noise(10), StepKind.PARTIAL)
    heard = await piece.step(noise(12), StepKind.FINAL)
    assert heard == Hypothesis(text, "en", final=True)


async def test_the_same_final_is_not_decoded_twice() -> None:
    core = ScriptedCore(["language English<asr_text>yes"])
    piece = stream(core)
    first = await piece.step(noise(10), StepKind.CANDIDATE)
    assert await piece.step(noise(10), StepKind.FINAL) == first
    assert len(core.requests) == 1


async def test_closed_windows_keep_their_key_and_the_last_one_never_does() -> None:
    core = ScriptedCore(["language English<asr_text>yes"] * 3)
    piece = stream(core)
    audio = noise(220)
    for units in (110, 120, 210):
        await piece.step(audio[: units * GRID_SAMPLES], StepKind.PARTIAL)
    keys = [[window.key for window in request.windows] for request in core.requests]
    assert [len(found) for found in keys] == [2, 2, 3]
    assert len({found[0] for found in keys}) == 1
    assert len({found[-1] for found in keys}) == 3


async def test_other_audio_of_the_same_length_has_other_keys() -> None:
    """A forced cut silences the end of what was already heard."""
    core = ScriptedCore(["language English<asr_text>yes"] * 2)
    piece = stream(core)
    audio = noise(210)
    await piece.step(audio, StepKind.PARTIAL)
    silenced = audio.copy()
    silenced[-5 * GRID_SAMPLES :] = 0
    await piece.step(silenced, StepKind.PARTIAL)
    before, after = ({window.key for window in request.windows} for request in core.requests)
    assert not before & after


@pytest.mark.parametrize(
    ("answer", "suspicion"),
    [
        (("language English<asr_text>" + "no " * 40, Ending.LOOP), Suspicion.LOOP),
        ("language English<asr_text>" + CONTEXT, Suspicion.CONTEXT_LEAK),
        ("language English<asr_text>yes <|im_end|>", Suspicion.RAW_TAGS),
    ],
)
async def test_a_bad_final_is_decoded_once_more_without_context(
    answer: tuple[str, Ending] | str, suspicion: Suspicion
) -> None:
    core = ScriptedCore([answer, "language English<asr_text>yes"])
    heard = await final(core, noise(60), context=CONTEXT)
    assert heard == Hypothesis("yes", "en", final=True)
    assert encode(CONTEXT)[0] in core.requests[0].before
    assert decode(core.requests[1].before).count("light") == 0
    assert core.counters.redecoded == 1
    assert core.counters.suspicions[suspicion] == 1


async def test_a_loop_that_stays_stands_once() -> None:
    heard = await final(ScriptedCore([("language English<asr_text>" + "no " * 40, Ending.LOOP)]), noise(60))
    assert heard.text == "no"


async def test_two_loops_in_a_text_stand_once_each() -> None:
    core = ScriptedCore([("language English<asr_text>" + "no " * 40 + "well " + "yes " * 40, Ending.LOOP)])
    assert (await final(core, noise(60))).text == "no well yes"


async def test_text_on_silence_is_not_sent() -> None:
    core = ScriptedCore(["language English<asr_text>thank you"])
    assert (await final(core, noise(30, loudness=1e-5))).text == ""
    assert core.counters.suspicions[Suspicion.TEXT_ON_SILENCE] == 1


async def test_a_partial_in_a_loop_leaves_what_is_shown() -> None:
    loop = ("language English<asr_text>" + "no " * 40, Ending.LOOP)
    core = ScriptedCore(["language English<asr_text>yes", loop, "language English<asr_text>yes sir"])
    piece = stream(core)
    shown = [await piece.step(noise(units), StepKind.PARTIAL) for units in (20, 30, 40)]
    assert [heard.text for heard in shown if heard] == ["yes", "yes", "yes sir"]


PHRASES = ["turn on ", "turn on the kitchen ", "打开"]


@pytest.mark.parametrize("phrase", PHRASES)
async def test_a_loop_in_a_short_clip_is_found_though_each_decode_is_cut_before_it_is_one(phrase: str) -> None:
    """Of 4.8 s a decode writes 66 tokens at most, and the core wants to see twenty repetitions in one."""
    parts = [(part, Ending.LENGTH) for part in cut_up("language English<asr_text>" + phrase * 40, 66)]
    core = ScriptedCore([*parts[: loop_parts(phrase)], "language English<asr_text>yes"])
    heard = await final(core, noise(60), context=CONTEXT)
    assert heard == Hypothesis("yes", "en", final=True)
    assert core.counters.redecoded == 1
    assert core.counters.suspicions == {Suspicion.LOOP: 1}


@pytest.mark.parametrize("phrase", PHRASES)
async def test_a_loop_in_a_short_clip_that_stays_stands_once(phrase: str) -> None:
    parts = [(part, Ending.LENGTH, 0.5) for part in cut_up("language English<asr_text>go " + phrase * 40, 66)]
    heard = await final(ScriptedCore(parts), noise(60))
    assert heard == Hypothesis("go " + phrase.strip(), "en", confidence=0.5, final=True)


def cut_up(text: str, size: int) -> list[str]:
    """Cut a text into what each decode writes of it, in the middle of words."""
    ids = encode(text)
    return [decode(ids[at : at + size]) for at in range(0, len(ids), size)]


def loop_parts(phrase: str) -> int:
    """Return after how many decodes of 66 tokens the guard sees a loop in a phrase."""
    ids = encode("language English<asr_text>" + phrase * 40)
    return next(parts for parts in range(1, 5) if find_loop(ids[: 66 * parts]))


ENDLESS = [
    ("language English<asr_text>one", Ending.LENGTH),
    *[(f" {n}", Ending.LENGTH) for n in ["two", "three", "four"]],
]


async def test_a_text_without_end_is_decoded_once_more_without_context() -> None:
    core = ScriptedCore([*ENDLESS, "language English<asr_text>yes"])
    assert (await final(core, noise(30), context=CONTEXT)).text == "yes"
    assert core.counters.redecoded == 1
    assert core.counters.suspicions == {Suspicion.HIT_LIMIT: 1}


async def test_a_text_without_end_is_sent_as_far_as_it_can_have_been_said() -> None:
    """Of 2.4 s that is 37 tokens, the 17 of the header among them."""
    core = ScriptedCore(ENDLESS)
    assert (await final(core, noise(30))).text == "one two three four"
    long = [(part, Ending.LENGTH) for part in cut_up("language English<asr_text>" + "".join(map(str, range(90))), 37)]
    heard = await final(ScriptedCore(long), noise(30))
    assert heard.text == "01234567891011121314"


async def test_a_forced_language_is_in_the_prompt_and_in_the_answer() -> None:
    core = ScriptedCore(["yes"])
    assert await final(core, noise(30), language="en") == Hypothesis("yes", "en", final=True)
    assert decode(core.requests[0].after).endswith("assistant\nlanguage English<asr_text>")


async def test_an_unknown_language_is_none() -> None:
    assert (await final(ScriptedCore(["language Greek<asr_text>ne"]), noise(30))).language is None
    assert (await final(ScriptedCore(["language None<asr_text>"]), noise(30))) == Hypothesis("", None, final=True)


async def test_a_bad_final_from_a_draft_is_decoded_once_more_from_nothing() -> None:
    loop = "language English<asr_text>" + "no " * 40
    core = ScriptedCore(
        ["language English<asr_text>no no", loop, "language English<asr_text>no"], [Verdict(1, 97, None)]
    )
    piece = stream(core)
    await piece.step(noise(20), StepKind.PARTIAL)
    heard = await piece.step(noise(60), StepKind.FINAL)
    assert heard == Hypothesis("no", "en", final=True)
    assert core.counters.redecoded == 1
    assert len(core.drafts) == 1


@pytest.mark.parametrize(
    ("units", "chance", "language"),
    [(8, 0.6, "en"), (8, 0.95, "zh"), (20, 0.6, "zh")],
    ids=["short and unsure", "clear evidence", "long enough"],
)
@pytest.mark.parametrize("kind", list(StepKind))
async def test_a_short_answer_stays_in_the_language_of_the_session(
    units: int, chance: float, language: str, kind: StepKind
) -> None:
    core = ScriptedCore([("language Chinese<asr_text>零", Ending.STOP, chance), ("no", Ending.STOP, 0.5)])
    heard = await stream(core, expected="en").step(noise(units), kind)
    assert heard is not None
    assert (heard.language, heard.text) == (language, "no" if language == "en" else "零")
    assert core.counters.held_languages == (language == "en")


@pytest.mark.parametrize("error", [EngineError("no"), EngineTimeout("late")])
@pytest.mark.parametrize("kind", list(StepKind))
async def test_an_answer_outlives_the_decode_that_should_have_changed_its_language(
    error: EngineError, kind: StepKind
) -> None:
    core = ScriptedCore([("language Chinese<asr_text>零", Ending.STOP, 0.6), error])
    heard = await stream(core, expected="en").step(noise(8), kind)
    assert heard is not None
    assert (heard.language, heard.text) == ("zh", "零")


async def test_the_end_of_the_core_is_told_though_there_is_an_answer() -> None:
    core = ScriptedCore([("language Chinese<asr_text>零", Ending.STOP, 0.6), EngineCrashed("gone")])
    with pytest.raises(EngineCrashed):
        await stream(core, expected="en").step(noise(8), StepKind.FINAL)


async def test_a_forced_language_outweighs_the_expected_one() -> None:
    core = ScriptedCore([("零", Ending.STOP, 0.1)])
    heard = await stream(core, language="zh", expected="en").step(noise(8), StepKind.FINAL)
    assert heard is not None
    assert (heard.language, heard.text) == ("zh", "零")


async def test_short_silence_stays_silent_in_an_established_session() -> None:
    core = ScriptedCore([("language None<asr_text>", Ending.STOP, 0.1)])
    heard = await stream(core, expected="en").step(noise(8), StepKind.FINAL)
    assert heard == Hypothesis("", None, final=True)


async def test_confidence_is_the_mean_of_the_texts_tokens() -> None:
    core = ScriptedCore([("language English<asr_text>yes", Ending.LENGTH, 0.5), (" sir", Ending.STOP, 1.0)])
    heard = await final(core, noise(30))
    assert heard.confidence == 0.79, "three tokens at 0.5 and four at 1"


async def test_where_there_is_no_room_partials_are_left_out_until_somebody_leaves() -> None:
    room = KvRoom(500)
    core = ScriptedCore(["language English<asr_text>yes"] * 4)
    first, second = (stream(core, room=room) for _ in range(2))
    assert await first.step(noise(200), StepKind.PARTIAL)
    assert await second.step(noise(100), StepKind.PARTIAL) is None
    assert await second.step(noise(100), StepKind.CANDIDATE) is None
    await first.close()
    assert await second.step(noise(100), StepKind.PARTIAL)
    assert room.charged > 100
    await second.close()
    assert room.charged == 0


async def test_a_request_says_when_the_step_was_asked_for_and_not_when_it_found_room() -> None:
    """vLLM serves the earliest first: who has waited for room goes before who came later."""
    clock = itertools.count(1)
    room = KvRoom(500)
    core = ScriptedCore(["language English<asr_text>yes"] * 4)
    core.can_verify = False
    core.now = lambda: float(next(clock))
    first, waiting, later = (stream(core, room=room) for _ in range(3))
    await first.step(noise(200), StepKind.PARTIAL)
    final = asyncio.create_task(waiting.step(noise(100), StepKind.FINAL))
    await asyncio.sleep(0)
    assert not final.done()
    await first.step(noise(210), StepKind.FINAL)
    await first.close()
    await final
    await later.step(noise(20), StepKind.FINAL)
    assert [(request.kind, request.asked_at) for request in core.requests[1:]] == [
        (StepKind.FINAL, 3),
        (StepKind.FINAL, 2),
        (StepKind.FINAL, 4),
    ]


class HangingCore(ScriptedCore):
    """Answers what it was told to, and then lives and says nothing."""

    def __init__(self, *script: str) -> None:
        super().__init__(script)
        self.aborted = 0

    async def generate(self, request: Request) -> Answer:
        return await super().generate(request) if not self.requests else await self.hang(request)

    async def verify(self, request: Request, draft: TokenIds) -> Verdict:
        await self.hang(request)
        raise AssertionError

    async def hang(self, request: Request) -> Answer:
        self.requests.append(request)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        raise AssertionError


@pytest.mark.parametrize("kind", list(StepKind))
async def test_a_core_that_hangs_is_not_waited_for(kind: StepKind) -> None:
    """The limit grows with the audio, by half of its length."""
    core = HangingCore("language English<asr_text>yes")
    piece = stream(core, decode_timeout_s=0.01)
    await piece.step(noise(2), StepKind.PARTIAL)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        with pytest.raises(EngineTimeout):
            await piece.step(noise(3), kind)
    assert asyncio.get_running_loop().time() - began >= 0.01 + 0.24 / 2
    assert (core.aborted, len(core.requests)) == (1, 2)


async def test_a_core_that_hangs_while_it_should_change_a_language_costs_no_answer() -> None:
    core = HangingCore("language Chinese<asr_text>零")
    heard = await stream(core, expected="en", decode_timeout_s=0.01).step(noise(2), StepKind.FINAL)
    assert heard is not None
    assert heard.text == "零"
    assert core.aborted == 1
