"""The start of the engine `vllm` on a core that answers by script: what it makes of its routes into vLLM."""

import importlib.util
from collections.abc import Callable, Sequence

import pytest

from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.engines import vllm
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._vllm_request import Answer, Counters, Ending, Request, TokenIds, Verdict
from qwen3_asr_server.engines.vllm import VllmEngine
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineNotReady
from support import character_tokens

YES = "language English<asr_text>yes"


class RoutedCore:
    """Writes by its renderer what a function gives for a request, and by direct input what another one gives."""

    def __init__(self, rendered: Callable[[Request], str], direct: Callable[[Request], str]) -> None:
        self._routes = {False: rendered, True: direct}
        self.counters = Counters()
        self.direct = True
        self.dead = self.stopped = False
        self.kv_tokens = None
        self.tokenizer = self
        self.kinds: list[tuple[bool, StepKind]] = []

    @property
    def can_verify(self) -> bool:
        return self.direct

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return character_tokens.encode(text)

    def decode(self, ids: Sequence[int], **_: bool) -> str:
        return character_tokens.decode(ids)

    async def generate(self, request: Request) -> Answer:
        self.kinds.append((self.direct, request.kind))
        return Answer(tuple(character_tokens.encode(self._routes[self.direct](request))), Ending.STOP, 0, 0)

    async def verify(self, request: Request, draft: TokenIds) -> Verdict:
        answer = await self.generate(request)
        return Verdict(len(draft), None, Answer((), answer.ending, 0, 0))

    async def abort_all(self) -> None: ...

    def stop(self) -> None:
        self.stopped = True


def says(text: str) -> Callable[[Request], str]:
    return lambda request: text


def raises(error: Exception) -> Callable[[Request], str]:
    def fail(request: Request) -> str:
        raise error

    return fail


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch):
    async def started(core: RoutedCore) -> VllmEngine:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(vllm, "_load_core", lambda options, arguments, start: core)
        engine = VllmEngine(EngineOptions("nowhere"))
        await engine.start()
        return engine

    return started


async def test_the_start_goes_through_every_kind_of_step_on_both_routes(start) -> None:
    core = RoutedCore(says(YES), says(YES))
    engine = await start(core)
    assert set(core.kinds) == {(direct, kind) for direct in (False, True) for kind in StepKind}
    assert core.direct
    assert engine.stats()["kv_tokens_charged"] == 0


@pytest.mark.parametrize(
    "direct",
    [
        says("language English<asr_text>no"),
        raises(EngineError("it could not decode this")),
        raises(AttributeError("no such thing in this version")),
    ],
    ids=["another text", "refused", "another version"],
)
async def test_the_renderer_takes_over_where_direct_input_does_not_work(direct, start, caplog) -> None:
    core = RoutedCore(says(YES), direct)
    engine = await start(core)
    assert not core.direct
    assert "renderer" in caplog.text
    assert engine.stats()["kv_tokens_charged"] == 0


async def test_a_core_that_dies_of_direct_input_is_not_used(start) -> None:
    core = RoutedCore(says(YES), says(YES))

    def die(request: Request) -> str:
        core.dead = True
        raise EngineCrashed("gone")

    core._routes[True] = die
    with pytest.raises(EngineCrashed):
        await start(core)
    assert core.stopped


async def test_weights_that_do_not_transcribe_are_refused(start) -> None:
    core = RoutedCore(says("language None<asr_text>"), says(YES))
    with pytest.raises(EngineNotReady, match="MODEL_DTYPE"):
        await start(core)
    assert core.stopped


async def test_the_limit_of_a_decode_is_the_setting_but_not_at_the_start(start, monkeypatch) -> None:
    engine = await start(RoutedCore(says(YES), says(YES)))
    assert engine.tools.decode_timeout_s == EngineOptions().decode_timeout_s == 3
    assert vllm.GREETING_S > 30, "the first decodes of a process are slow"
