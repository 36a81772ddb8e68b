"""The engine contract by the other route: vLLM's renderer, the fallback where direct input does not work."""

import inspect
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

from contract import test_engines as contract
from qwen3_asr_server.domain import GRID_SAMPLES
from qwen3_asr_server.engines.vllm import VllmEngine
from support.tiny_speech import long_audio

pytestmark = pytest.mark.asyncio(loop_scope="session")

ASKED_OF_AN_ENGINE = {
    name: test
    for name, test in vars(contract).items()
    if name.startswith("test_") and set(inspect.signature(test).parameters) == {"engine"}
}


@pytest.fixture(autouse=True)
def rendered(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn the direct route off, and give the contract speech that the tiny checkpoint understands."""
    sentence, other = islice(long_audio(3), 2)
    for name, audio in {"SENTENCE": sentence, "OTHER": other, "LONGER": next(long_audio(5))}.items():
        monkeypatch.setattr(contract, name, audio)
    monkeypatch.setattr(engine.core, "direct", False)


@pytest.mark.parametrize("name", ASKED_OF_AN_ENGINE)
async def test_the_contract(engine: VllmEngine, name: str) -> None:
    test: Callable[[Any], Awaitable[None]] = ASKED_OF_AN_ENGINE[name]
    await test(engine)


async def test_the_final_does_not_depend_on_the_steps(engine: VllmEngine) -> None:
    await contract.test_the_final_does_not_depend_on_the_steps(engine, [1, 2, 3, 7, 20])


async def test_silence_has_no_words(engine: VllmEngine) -> None:
    for length in (0, 1, 25):
        await contract.test_silence_has_no_words(engine, length, 0.0)


async def test_both_routes_write_the_same(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = next(long_audio(15))
    by_renderer = await contract.final(engine, np.asarray(audio), [30, 90, 150])
    monkeypatch.setattr(engine.core, "direct", True)
    direct = await contract.final(engine, np.asarray(audio), [30, 90, 150])
    assert by_renderer.text == direct.text
    assert len(audio) > 8 * 12.5 * GRID_SAMPLES
