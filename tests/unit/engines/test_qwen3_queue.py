"""Which step runs when, with whom, and what happens to one that nobody wants any more; the model is a stub."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from qwen3_asr_server.domain import GRID_SAMPLES, StepKind
from qwen3_asr_server.engines._qwen3_queue import MAX_WAITING, Decode, QueueOptions, StepQueue, Written
from qwen3_asr_server.errors import EngineError, EngineNotReady, EngineTimeout

LIMIT_S = 20


class GatedModel:
    """Answers each decode with its bound; waits at a gate, and leaves a decode that all have given up."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began = threading.Event()
        self.batches: list[list[int]] = []
        self.problem: Exception | None = None

    def __call__(self, batch: Sequence[Decode]) -> list[Written]:
        self.batches.append([wanted.max_tokens for wanted in batch])
        self.began.set()
        while not self.gate.wait(0.002):
            if all(wanted.abandoned for wanted in batch):
                break
        if self.problem:
            raise self.problem
        return [Written((wanted.max_tokens,), complete=True) for wanted in batch]


def wanted(number: int, kind: StepKind = StepKind.PARTIAL, units: int = 1) -> Decode:
    """A decode that is known by its bound."""
    return Decode(kind, np.zeros(units * GRID_SAMPLES, np.float32), None, "", (), number)


def queue_of(model: GatedModel, max_batch: int = 3, decode_s: float = LIMIT_S, queue_s: float = LIMIT_S) -> StepQueue:
    return StepQueue(model, QueueOptions(max_batch, decode_s, queue_s))


async def submitted(queue: StepQueue, *decodes: Decode) -> "list[asyncio.Task[Written | None]]":
    tasks = [asyncio.create_task(queue.decode(decode)) for decode in decodes]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_steps_that_come_together_are_one_batch() -> None:
    model = GatedModel()
    model.gate.set()
    queue = queue_of(model)
    answers = await asyncio.gather(*[queue.decode(wanted(number)) for number in (1, 2, 3)])
    assert [answer and answer.ids for answer in answers] == [(1,), (2,), (3,)]
    assert model.batches == [[1, 2, 3]]
    assert queue.batches == 1
    await queue.stop()


async def test_what_waits_goes_by_urgency_and_then_by_age() -> None:
    model = GatedModel()
    queue = queue_of(model, max_batch=2)
    first = await submitted(queue, wanted(1))
    later = await submitted(
        queue,
        wanted(2),
        wanted(3, StepKind.CANDIDATE),
        wanted(4),
        wanted(5, StepKind.FINAL),
        wanted(6, StepKind.CANDIDATE),
    )
    model.gate.set()
    await asyncio.gather(*first, *later)
    assert model.batches == [[1], [5, 3], [6, 2], [4]]
    await queue.stop()


async def test_a_step_given_up_while_it_waits_is_never_carried_out() -> None:
    model = GatedModel()
    queue = queue_of(model, max_batch=2)
    first = await submitted(queue, wanted(1))
    second, third = await submitted(queue, wanted(2), wanted(3))
    second.cancel()
    await asyncio.wait([second])
    model.gate.set()
    await asyncio.gather(*first, third)
    assert model.batches == [[1], [3]]
    await queue.stop()


async def test_a_step_given_up_while_it_runs_is_left_by_the_model() -> None:
    model = GatedModel()
    queue = queue_of(model)
    (task,) = await submitted(queue, wanted(1))
    task.cancel()
    await asyncio.wait([task])
    after = asyncio.create_task(queue.decode(wanted(2)))
    model.gate.set()
    assert await after == Written((2,), complete=True)
    await queue.stop()


@pytest.mark.parametrize("kind", list(StepKind))
async def test_when_too_many_wait_a_partial_gives_way(kind: StepKind) -> None:
    model = GatedModel()
    queue = queue_of(model, max_batch=1)
    tasks = await submitted(queue, wanted(0))
    tasks += await submitted(queue, *[wanted(number) for number in range(MAX_WAITING)])
    if kind is StepKind.FINAL:
        with pytest.raises(EngineTimeout):
            await queue.decode(wanted(-1, kind))
    else:
        assert await queue.decode(wanted(-1, kind)) is None
    await queue.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {EngineNotReady}


async def test_no_turn_in_time() -> None:
    model = GatedModel()
    queue = queue_of(model, max_batch=1, queue_s=0.01)
    (running,) = await submitted(queue, wanted(1))
    with pytest.raises(EngineTimeout):
        await queue.decode(wanted(2))
    model.gate.set()
    assert await running
    assert model.batches == [[1]]
    await queue.stop()


async def test_work_that_takes_too_long_is_left() -> None:
    model = GatedModel()
    queue = queue_of(model, decode_s=0.01)
    with pytest.raises(EngineTimeout):
        await queue.decode(wanted(1))
    model.gate.set()
    assert await queue.decode(wanted(2, units=25)) == Written((2,), complete=True)
    await queue.stop()


async def test_a_failure_of_the_model_fails_its_batch_only(caplog: pytest.LogCaptureFixture) -> None:
    model = GatedModel()
    model.gate.set()
    model.problem = RuntimeError("/secret/path")
    queue = queue_of(model)
    failed = await asyncio.gather(*[queue.decode(wanted(n)) for n in (1, 2)], return_exceptions=True)
    assert [type(problem) for problem in failed] == [EngineError, EngineError]
    assert "secret" not in str(failed)
    assert "the model failed" in caplog.text
    model.problem = None
    assert await queue.decode(wanted(3)) == Written((3,), complete=True)
    await queue.stop()


async def test_stopping_fails_what_is_open_and_refuses_what_comes() -> None:
    model = GatedModel()
    queue = queue_of(model, max_batch=1)
    tasks = await submitted(queue, wanted(1), wanted(2))
    assert model.began.wait(LIMIT_S)
    await queue.stop()
    await queue.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [EngineNotReady, EngineNotReady]
    with pytest.raises(EngineNotReady):
        await queue.decode(wanted(3))
    assert model.batches == [[1]]
