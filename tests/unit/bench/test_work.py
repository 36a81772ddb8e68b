"""How requests and encodings become the cost of a step."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from _work import Encoded, Meter, RequestCount, StepCount, bins, count_windows, credit, mean_before


def step(at_s: float = 1.0, *requests: RequestCount, embeddings: int = 0) -> StepCount:
    named = {f"partial-{number}-{id(request)}": request for number, request in enumerate(requests)}
    return StepCount(0, "partial", at_s, requests=named, embeddings=embeddings)


def test_a_step_is_the_sum_of_its_requests() -> None:
    counted = step(1.0, RequestCount(prompt=300, cached=96, written=4), RequestCount(prompt=320, cached=288, written=1))
    assert (counted.prefill, counted.cached, counted.written) == (236, 384, 5)


@pytest.mark.parametrize(
    ("requests", "serial"),
    [
        ([RequestCount(100, 0, 1)], 1),
        ([RequestCount(100, 0, 12)], 12),
        ([RequestCount(4097, 0, 1)], 3),
        ([RequestCount(100, 0, 1), RequestCount(110, 96, 7)], 8),
        ([RequestCount(100, 0, 0)], 1),
    ],
)
def test_serial_steps(requests: list[RequestCount], serial: int) -> None:
    assert step(1.0, *requests).serial(batched_tokens=2048) == serial


def test_the_encoder_is_credited_to_the_step_that_asked() -> None:
    first, second = StepCount(0, "partial", 1), StepCount(1, "final", 1)
    first.requests["partial-0-0"] = second.requests["final-1-1"] = RequestCount()
    encoded = [
        Encoded("partial-0-0-0a1b2c3d", "x/0/step1", 26),
        Encoded("final-1-1", "y/0/step1", 52),
        Encoded("final-1-1-00000000", "y/1/step1", 13),
        Encoded("warm-up", "z/0/step1", 104),
    ]
    credit([first, second], encoded)
    assert (first.embeddings, second.embeddings) == (26, 65)


def test_closed_windows_are_counted_by_key() -> None:
    keys = ["a/0/-1.5", "a/0/step3", "a/1/-1.5", "b/0/0.25", "b/0/0.25", "b/0/0.75", "reference 3"]
    windows = count_windows([Encoded("partial-0", key, 104) for key in keys])
    assert (windows.closed, windows.twice, windows.lifted) == (3, 1, 1)


def test_work_is_put_in_bins_of_two_seconds() -> None:
    steps = [step(at_s, RequestCount(100, 20), embeddings=26) for at_s in (0.4, 2.0, 2.4, 8.0)]
    assert bins(steps, 8.0) == [(160, 52), (80, 26), (0, 0), (80, 26)]


def test_the_mean_is_over_the_eight_seconds_before() -> None:
    work = [(1000, 1000), (80, 8), (80, 8), (160, 8), (0, 8), (5000, 5000)]
    assert mean_before(work, 10.0, 0) == 40
    assert mean_before(work, 10.0, 1) == 4


@dataclass
class Vllm:
    """Answers every request with two outputs."""

    names: list[str] = field(default_factory=list)

    async def generate(self, prompt: Any, params: Any, name: str) -> AsyncGenerator[Any, None]:
        self.names.append(name)
        for written in (1, 3):
            yield SimpleNamespace(
                prompt_token_ids=[0] * prompt, num_cached_tokens=32, outputs=[SimpleNamespace(token_ids=[0] * written)]
            )


async def test_a_request_belongs_to_the_step_around_it() -> None:
    vllm = Vllm()
    meter = Meter(vllm)
    with meter.step(7, "partial", 2.0):
        assert len([output async for output in vllm.generate(90, None, "same")]) == 2
    async for _ in vllm.generate(50, None, "same"):
        pass
    (counted,) = meter.steps
    assert (counted.session, counted.prefill, counted.cached, counted.written) == (7, 58, 32, 3)
    assert len(set(vllm.names)) == 2, "two cores may use the same names"
