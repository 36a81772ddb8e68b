"""The reference's prefix rule, and the script that stands in for a text."""

from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pytest
from _policies import ReferenceStream, ScriptedCore

from qwen3_asr_server.audio.mel import LogMel
from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.engines._vllm_request import Answer, Counters, Ending, Request, TokenIds, Verdict, Window
from qwen3_asr_server.engines._vllm_stream import Tools
from qwen3_asr_server.text.prompt import PromptIds

PROMPT = PromptIds(1, 2, 3, 4, 5, 6, (7,), (8,), (9,), (10,), MappingProxyType({"en": (11, 6)}))
SECOND = np.zeros(16_000, np.float32)


@dataclass
class Core:
    """Writes bytes, one id each, from a list of answers."""

    answers: list[bytes]
    asked: list[Request] = field(default_factory=list)
    drafts: list[TokenIds] = field(default_factory=list)
    can_verify: bool = True
    counters: Counters = field(default_factory=Counters)

    async def generate(self, request: Request) -> Answer:
        self.asked.append(request)
        return Answer(tuple(self.answers.pop(0)), Ending.LENGTH, 100, 32)

    async def verify(self, request: Request, draft: TokenIds) -> Verdict:
        self.asked.append(request)
        self.drafts.append(draft)
        return Verdict(0, 1, None)


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(ids: object) -> str:
    return bytes(ids).decode(errors="replace")  # type: ignore[call-overload, no-any-return]


def tools(core: Core) -> Tools:
    return Tools(
        core=core,
        prompt=PROMPT,
        decode=decode,
        context_ids=lambda _: (),
        mel=LogMel(),
        languages=frozenset({"en"}),
        max_new_tokens=32,
        new_nonce=lambda: "nonce",
    )


async def test_the_reference_sends_all_audio_and_goes_on_from_the_third_step() -> None:
    core = Core([b"abcdefgh", b"abcdefgh", b"fghij"])
    stream = ReferenceStream(tools(core), encode)
    for seconds in (1, 2, 3):
        await stream.step(np.tile(SECOND, seconds))
    assert [len(request.windows[0].samples) for request in core.asked] == [16_000, 32_000, 48_000]
    assert len({request.windows[0].key for request in core.asked}) == 3
    given = [bytes(request.after[len(core.asked[0].after) :]) for request in core.asked]
    assert given == [b"", b"", b"abc"]
    assert stream.raw == "abcfghij"


@pytest.mark.parametrize(
    ("raw", "prefix"), [("", ""), ("abcd", ""), ("abcdefg", "ab"), ("ab灯cd", "ab"), ("ab灯cdefg", "ab灯")]
)
def test_no_character_is_cut(raw: str, prefix: str) -> None:
    stream = ReferenceStream(tools(Core([])), encode, raw=raw, steps=2)
    assert decode(stream.prefix()) == prefix


def scripted(core: Core) -> ScriptedCore:
    return ScriptedCore(core, (11, 6), tuple(range(100, 200)), tokens_per_s=3.0, no_prefix=2)


def request(seconds: int, given: TokenIds = ()) -> Request:
    window = Window("key", np.empty((128, 0), np.float32), np.tile(SECOND, seconds), 13 * seconds)
    return Request((1,), [window], (2, 3, *given), 32, StepKind.PARTIAL, 0.0)


async def test_a_scripted_answer_has_the_length_of_the_audio() -> None:
    core = Core([b"?", b"?"])
    first = await scripted(core).generate(request(2))
    assert first.ids == (11, 6, 100, 101, 102, 103, 104, 105)
    assert (first.ending, first.prompt_tokens, first.cached_tokens) == (Ending.STOP, 100, 32)
    then = await scripted(core).generate(request(3, (11, 6, 100)))
    assert then.ids == tuple(range(101, 109))
    assert [asked.max_tokens for asked in core.asked] == [8, 8], "vLLM writes as many"


async def test_a_scripted_draft_is_compared_and_right() -> None:
    core = Core([])
    assert await scripted(core).verify(request(2), (1, 2, 3)) == Verdict(3, None, None)
    assert core.drafts == [(1, 2, 3)]
